"""One run of an experiment, executed in this process on Dagster's persistent instance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import dagster as dg

from docml_assets.dagster_internals import (
    carry_findings,
    checks_of,
    execute_run,
    forget_unevaluated_checks,
    is_interrupt,
    job_origin,
    recorded_version,
    unevaluated_checks,
    without_checks,
)
from docml_assets.partitions import PROCESS_TAG, PRODUCTION_UNCHANGED, partition_key, partition_tags, register
from docml_assets.runs.claims import Claim, read_or_note
from docml_contract.manifests import Manifest
from docml_contract.names import (
    BEST_MODEL,
    ENCODED_SPLITS,
    EXPERIMENT_SNAPSHOT,
    INFERENCE,
    INFERENCE_REPORT,
    LABEL_COUNTS,
    PREPARATION,
    RECONCILED_DATA,
    RECONCILIATION,
    TRAINING,
    TUNING,
)
from resources.processes import this_process
from resources.store import Store
from resources.store.manifests import read_manifest

JOB = "run_experiment"
# The assets of a run in the order of their making, with the steps that make them.
ASSETS = (
    (EXPERIMENT_SNAPSHOT, ()),
    (RECONCILED_DATA, (RECONCILIATION,)),
    (LABEL_COUNTS, (RECONCILIATION,)),
    (ENCODED_SPLITS, (PREPARATION,)),
    (BEST_MODEL, (TRAINING, TUNING)),
    (INFERENCE_REPORT, (INFERENCE,)),
)


@dataclass(frozen=True)
class Failure:
    """A step of a Dagster run that failed."""

    step: str
    message: str
    explained: bool  # the message says what was found, what was expected and the remedy: no traceback is needed


@dataclass(frozen=True)
class Executed:
    """How an execution ended."""

    dagster_run_id: str
    success: bool
    canceled: bool
    failures: tuple[Failure, ...]


def selection(steps: frozenset[str], *, whole: bool) -> list[str]:
    """The assets of an execution that performs `steps`: all of them, or (whole=False) only up to the last of the steps."""
    if whole:
        return [asset for asset, _ in ASSETS]
    last = max(index for index, (_, makers) in enumerate(ASSETS) if steps & set(makers))
    return [asset for asset, _ in ASSETS[: last + 1]]


def lasting_checks(job: dg.JobDefinition) -> list[dg.AssetCheckKey]:
    """The checks whose findings hold on when a finished run is verified again."""
    return [*checks_of(job), PRODUCTION_UNCHANGED]


def is_checked(
    instance: dg.DagsterInstance, job: dg.JobDefinition, claim: Claim, finished: Mapping[str, Manifest] | None
) -> bool:
    """Whether every step of the run is finished (`finished_folders`), and this instance knows the report and has a finding of each check: they would be the same."""
    partition = partition_key(claim.experiment, claim.run)
    return (
        finished is not None
        and recorded_version(instance, INFERENCE_REPORT, partition) == finished[claim.place.inference].data_version
        and not unevaluated_checks(instance, checks_of(job), partition)
    )


def finished_folders(store: Store, claim: Claim) -> dict[str, Manifest] | None:
    """The manifests of a run by their folders; None unless every step is finished."""
    place, damage, found = claim.place, list[str](), dict[str, Manifest]()

    def finished(folder: str) -> bool:
        manifest = read_or_note(partial(read_manifest, store, folder), damage)
        if manifest is not None:
            found[folder] = manifest
        return manifest is not None

    models = claim.settings.model_names
    complete = all(map(finished, (place.inference, place.reconciliation, place.labels, place.preparation))) and any(
        all(finished(place.trained(name, tuned=tuned)) for name in models) for tuned in (False, True)
    )
    return found if complete else None


def execute(
    instance: dg.DagsterInstance,
    job: dg.JobDefinition,
    claim: Claim,
    *,
    assets: Sequence[str],
    tags: dict[str, str],
    checks: bool = True,
) -> Executed:
    """Materialize `assets` of a claimed run with `job` (run_experiment), here and now. An interrupt stops its job and cancels the run.

    checks: whether the assets' checks are evaluated too; without them `assets` are all that the job has, whose findings hold on.
    Dagster's own `execute_in_process` would leave the run without its place in the workspace, so that the UI could not re-execute it,
    and count an interrupt as a failure.
    """
    key = register(instance, claim.experiment, claim.run)
    known = [] if checks else lasting_checks(job)
    job = job if checks else without_checks(job, assets)
    run = instance.create_run_for_job(
        job,
        tags={
            **tags,
            PROCESS_TAG: str(this_process()),
            **partition_tags(key),
        },
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        asset_selection=frozenset(dg.AssetKey(asset) for asset in assets) if checks else None,
        remote_job_origin=job_origin("docml_assets.definitions", "docml", JOB),
    )
    failures = []
    try:
        for event in execute_run(job, run, instance):
            if not event.is_step_failure:
                continue
            if is_interrupt(event):
                instance.report_run_canceling(run)
            else:
                failures.append(_failure(event))
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        instance.report_run_canceled(run)
    ended = instance.get_run_by_id(run.run_id)
    if ended is not None:
        carry_findings(instance, known, key)
        forget_unevaluated_checks(instance, [ended])
    status = ended.status if ended else dg.DagsterRunStatus.FAILURE
    return Executed(
        run.run_id,
        success=status == dg.DagsterRunStatus.SUCCESS,
        canceled=status == dg.DagsterRunStatus.CANCELED,
        failures=tuple(failures),
    )


def _failure(event: dg.DagsterEvent) -> Failure:
    """Why a step failed: its own sentence, or else its innermost error, since Dagster's wrapping says nothing more."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return Failure(event.step_key or "", data.user_failure_data.description, explained=True)
    error = data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return Failure(event.step_key or "", (error.message if error else event.message or "").strip(), explained=False)
