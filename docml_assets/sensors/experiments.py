"""experiment_sensor: a new folder, or a changed RUN_NUM, starts a run.

The cursor remembers, for each folder, the content seen last, whether that content has been dealt with, and the runs started. What
is new waits for a second tick, so that nothing starts from a folder that is still being written. A folder with mistakes is looked
at again at every tick (what it lacked may come from elsewhere): each tick shows them, its log has what is new only. The claim carries the
cursor's id: after a crash the next tick finds its own claim and asks Dagster for the same run again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from docml_assets.errors import EXPLAINED_ERRORS, DocmlError, ProblemsError
from docml_assets.experiment.folder import ExperimentFolder, experiment_folders
from docml_assets.partitions import PARTITION_TAG
from docml_assets.runs.claims import RunClaimed, changed_keys, claim_run, describe_changes, next_run, read_claim
from docml_assets.runs.preflight import validate
from docml_assets.sensors.launching import (
    TICK_PATIENCE_SECONDS,
    Launch,
    SensorCursor,
    TickFindings,
    content_digest,
    in_turn,
    minute,
)
from docml_assets.steps.work import flagged_steps
from docml_contract.base import Document, digest, short
from resources.store import Store

NAME = "experiment_sensor"
MOST_RUNS = 1_000  # that a tick asks Dagster for, to know which failed


class FolderMemory(Document):
    """What the sensor knows of one folder."""

    digest: str = Field(description="of the content at the last tick")
    handled: bool = Field(False, description="whether this content has been dealt with")
    launched: tuple[int, ...] = Field((), description="the runs that were started")
    said: str | None = Field(None, description="digest of what was last said about it")
    since: str | None = Field(None, description="since when nothing can start from it")


class ExperimentsCursor(SensorCursor):
    """What the sensor knows of all of them."""

    folders: dict[str, FolderMemory] = Field(default_factory=dict)


@dg.sensor(
    name=NAME,
    job_name="run_experiment",
    description="Starts a run for every new experiment folder (unchanged for two ticks) and for every changed RUN_NUM, with the "
    "steps that the RUN_* flags turn on. Each tick says how the experiments stand, and all mistakes. Stopped until switched on: "
    "runs can cost money.",
    default_status=dg.DefaultSensorStatus.STOPPED,
    minimum_interval_seconds=30,
)
def experiment_sensor(context: dg.SensorEvaluationContext, deployment: dg.ResourceParam[Any]) -> dg.SensorResult:
    """The thin Dagster side of `look`."""
    folders = experiment_folders(deployment.experiments)
    cursor, findings = look(
        ExperimentsCursor.read(context.cursor),
        folders,
        deployment.store.with_patience(TICK_PATIENCE_SECONDS),
        deployment.environment,
    )
    note_failures(context.instance, cursor, findings)
    return findings.result(context, cursor.write(), folders, deployment.experiments)


def look(
    cursor: ExperimentsCursor, folders: Mapping[str, Path], store: Store, environment: Mapping[str, str]
) -> tuple[ExperimentsCursor, TickFindings]:
    """One tick: what there is to start and to say, and what is to be remembered. One bad folder does not stop the others."""
    findings = TickFindings()
    known = {name: seen for name, seen in cursor.folders.items() if name in folders}
    last = cursor.after
    for name in in_turn(folders, cursor.after):
        last = name
        before, seen = known.get(name), remember(known.get(name), content_digest(folders[name]))
        if seen != before:
            findings.states[name] = (
                "waiting",
                "new, or changed; it is dealt with at the next tick, if it stays as it is until then",
            )
        elif not seen.handled:
            seen = deal_with(folders[name], seen, store, environment, cursor.id, findings)
        else:
            findings.states[name] = ("edited" if seen.said else "unchanged", "")
        known[name] = seen
    return cursor.model_copy(update={"folders": known, "after": last}), findings


def remember(seen: FolderMemory | None, content: str) -> FolderMemory:
    """What is known of a folder whose content has this digest now."""
    if seen is None:
        return FolderMemory(digest=content)
    return seen if seen.digest == content else FolderMemory(digest=content, launched=seen.launched, since=seen.since)


def deal_with(
    path: Path, seen: FolderMemory, store: Store, environment: Mapping[str, str], cursor_id: str, findings: TickFindings
) -> FolderMemory:
    """Claim and launch a folder's RUN_NUM, or say why not."""
    try:
        outcome = claim_folder(path, seen, store, environment, cursor_id)
        if isinstance(outcome, Launch):
            findings.launches.append(outcome)
            findings.states[path.name] = ("start", str(outcome))
            return FolderMemory(digest=seen.digest, handled=True, launched=(*seen.launched, outcome.claim.run))
        findings.states[path.name] = ("edited" if outcome else "unchanged", outcome or "")
        handled, report, since = True, f"{path.name}: {outcome}" if outcome else None, None
    except Exception as error:  # a defect that one folder meets must not stop the others
        explained = isinstance(error, (*EXPLAINED_ERRORS, OSError))
        reason = str(error) if explained else f"{type(error).__name__}: {error} (please report this)"
        handled, report, since = False, f"{path.name}: nothing starts: {reason}", seen.since or minute()
        findings.states[path.name] = ("broken", f"nothing starts, since {since}: {reason}")
    said = short(digest(report)) if report else None
    if report and said != seen.said:
        findings.reports.append(report)
    return seen.model_copy(update={"handled": handled, "said": said, "since": since})


def note_failures(instance: dg.DagsterInstance, cursor: ExperimentsCursor, findings: TickFindings) -> None:
    """Let the states tell which of the runs that this sensor started last have failed."""
    newest = {f"{name}|{seen.launched[-1]}": name for name, seen in cursor.folders.items() if seen.launched}
    if not newest:
        return
    outcomes: dict[str, dg.DagsterRun] = {}
    for run in instance.get_runs(dg.RunsFilter(tags={PARTITION_TAG: list(newest)}), limit=MOST_RUNS):
        outcomes.setdefault(run.tags[PARTITION_TAG], run)  # newest first: a re-execution counts
    for partition, run in outcomes.items():
        name = newest[partition]
        if run.status == dg.DagsterRunStatus.FAILURE and findings.states.get(name) == ("unchanged", ""):
            findings.states[name] = (
                "failed",
                f"run {partition.rpartition('|')[2]} failed: Dagster run {run.run_id[:8]} says why",
            )


def claim_folder(
    path: Path, seen: FolderMemory, store: Store, environment: Mapping[str, str], cursor_id: str
) -> Launch | str | None:
    """The launch of a folder's RUN_NUM; or, if that run is claimed already, what to say of it (None: nothing).

    Raises whatever keeps the run from starting now, ProblemsError with all mistakes among it.
    """
    folder = ExperimentFolder.load(path)
    problems = validate(path, environment)
    if problems:
        raise ProblemsError(problems)
    number = folder.settings.run_num
    if not flagged_steps(folder.settings):
        raise NothingToDo(f"every RUN_* flag is off; turn one on to start run {number}")
    if content_digest(path) != seen.digest:
        raise NothingToDo("the folder changed while it was read")
    request_id = f"{NAME} {cursor_id} {folder.name}|{number}"
    claim = read_claim(store, folder.name, number)
    if claim is None:
        try:
            claim = claim_run(store, folder, number, trigger={"kind": NAME, "run_num": number}, request_id=request_id)
        except RunClaimed:
            claim = read_claim(store, folder.name, number)
            if claim is None:
                raise
    if claim.request_id == request_id and number not in seen.launched:
        return Launch.of(claim, folder.settings)
    changed = changed_keys(claim, folder)
    return describe_changes(claim, changed, next_run(store, folder.name)) if changed else None


class NothingToDo(DocmlError):
    """A folder without mistakes from which nothing can start now."""
