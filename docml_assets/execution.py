"""One run of an experiment, executed in this process on Dagster's persistent instance."""

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

from docml_assets.assets.common import OPERATION_TAG, STEPS_TAG, TRIGGER_TAG
from docml_assets.errors import DocmlError
from docml_assets.experiment.claims import Claim
from docml_assets.experiment.settings import Settings
from docml_assets.partitions import register
from docml_assets.processes import PROCESS_TAG, this_process
from docml_assets.steps.snapshot import operation_tag
from docml_assets.steps.work import INFERENCE, PREPARATION, RECONCILIATION, STEPS, TRAINING, TUNING
from docml_contract.errors import ContractError
from resources.errors import ResourceError

# The assets of a run in the order of their making, with the steps that make them.
ASSETS = (
    ("experiment_snapshot", ()),
    ("reconciled_data", (RECONCILIATION,)),
    ("label_counts", (RECONCILIATION,)),
    ("encoded_splits", (PREPARATION,)),
    ("best_torchscript_model", (TRAINING, TUNING)),
    ("inference_report", (INFERENCE,)),
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


def flagged_steps(settings: Settings) -> frozenset[str]:
    """The steps that the RUN_* flags turn on."""
    return frozenset(step for step in STEPS if getattr(settings, f"run_{step}"))


def selection(steps: frozenset[str], *, whole: bool) -> list[str]:
    """The assets of an execution that performs `steps`: all of them, or (whole=False) only up to the last of the steps."""
    if whole:
        return [asset for asset, _ in ASSETS]
    last = max(index for index, (_, makers) in enumerate(ASSETS) if steps & set(makers))
    return [asset for asset, _ in ASSETS[: last + 1]]


def run_tags(steps: frozenset[str], settings: Settings, trigger: dict[str, object]) -> dict[str, str]:
    """The tags by which the assets know what an execution is to do."""
    return {
        STEPS_TAG: ",".join(step for step in STEPS if step in steps),
        OPERATION_TAG: operation_tag(settings),
        TRIGGER_TAG: json.dumps(trigger, sort_keys=True),
    }


def execute(instance: dg.DagsterInstance, claim: Claim, *, assets: Sequence[str], tags: dict[str, str]) -> Executed:
    """Materialize `assets` of a claimed run here and now. An interrupt stops its job, cancels the run and is reported."""
    from docml_assets.definitions import defs

    key = register(instance, claim.experiment, claim.run)
    job = defs.resolve_job_def("run_experiment")
    run_id = str(uuid.uuid4())
    try:
        result = job.execute_in_process(
            instance=instance,
            partition_key=key,
            run_id=run_id,
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            tags={**tags, PROCESS_TAG: this_process()},
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
    except dg.DagsterExecutionInterruptedError:
        return Executed(run_id, success=False, canceled=True, failures=())
    run = instance.get_run_by_id(run_id)
    canceled = run is not None and run.status == dg.DagsterRunStatus.CANCELED
    return Executed(run_id, result.success, canceled, tuple(_failures(result)))


def _failures(result: dg.ExecuteInProcessResult) -> Iterator[Failure]:
    """The innermost error of every step that failed: Dagster's own wrapping says nothing more."""
    explained = {kind.__name__ for base in (DocmlError, ResourceError, ContractError) for kind in _family(base)}
    for event in result.all_events:
        if not event.is_step_failure:
            continue
        error = event.step_failure_data.error
        while error is not None and error.cause is not None and error.cls_name not in explained:
            error = error.cause
        name = (error.cls_name if error else None) or "Error"
        message = (error.message if error else event.message or "").strip()
        known = name in explained
        yield Failure(event.step_key or "", message.partition(": ")[2] if known else message, known)


def _family(base: type[Exception]) -> Iterator[type[Exception]]:
    yield base
    for kind in base.__subclasses__():
        yield from _family(kind)
