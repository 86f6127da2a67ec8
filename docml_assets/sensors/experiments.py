"""experiment_sensor: a new folder, or a changed RUN_NUM, starts a run.

The cursor remembers, for each folder, the content seen last, whether that content has been dealt with, and the runs started. What
is new waits for a second tick, so that nothing starts from a folder that is still being written. A folder with mistakes is looked
at again at every tick (what it lacked may come from elsewhere), but the same mistakes are said once. The claim carries the
cursor's id: after a crash the next tick finds its own claim and asks Dagster for the same run again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from docml_assets.errors import EXPLAINED_ERRORS, DocmlError, ProblemsError
from docml_assets.experiment.folder import ExperimentFolder
from docml_assets.runs.claims import Claim, RunClaimed, changed_keys, claim_run, describe_changes, next_run, read_claim
from docml_assets.runs.preflight import validate
from docml_assets.sensors.launching import (
    TICK_PATIENCE_SECONDS,
    Launch,
    SensorCursor,
    TickFindings,
    content_digest,
    experiment_folders,
    in_turn,
)
from docml_assets.steps.work import flagged_steps
from docml_contract.base import Document, digest
from resources.store import Store

NAME = "experiment_sensor"


class FolderMemory(Document):
    """What the sensor knows of one folder."""

    digest: str = Field(description="of the content at the last tick")
    handled: bool = Field(False, description="whether this content has been dealt with")
    launched: tuple[int, ...] = Field((), description="the runs that were started")
    said: str | None = Field(None, description="digest of what was last said about it")


class ExperimentsCursor(SensorCursor):
    """What the sensor knows of all of them."""

    folders: dict[str, FolderMemory] = Field(default_factory=dict)


@dg.sensor(
    name=NAME,
    job_name="run_experiment",
    description="Starts a run for every new experiment folder (unchanged for two ticks) and for every changed RUN_NUM, with the "
    "steps that the RUN_* flags turn on. Mistakes in a folder are reported once, all of them. Stopped until switched on: "
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
    idle = f"{len(folders)} experiment folders in {deployment.experiments}; nothing new"
    return findings.result(context, cursor.model_dump_json(), idle)


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
        if seen == before and not seen.handled:
            seen = deal_with(folders[name], seen, store, environment, cursor.id, findings)
        known[name] = seen
    return cursor.model_copy(update={"folders": known, "after": last}), findings


def remember(seen: FolderMemory | None, content: str) -> FolderMemory:
    """What is known of a folder whose content has this digest now."""
    if seen is None:
        return FolderMemory(digest=content)
    return seen if seen.digest == content else FolderMemory(digest=content, launched=seen.launched)


def deal_with(
    path: Path, seen: FolderMemory, store: Store, environment: Mapping[str, str], cursor_id: str, findings: TickFindings
) -> FolderMemory:
    """Claim and launch a folder's RUN_NUM, or say (once) why not."""
    try:
        outcome = claim_folder(path, seen, store, environment, cursor_id)
        if isinstance(outcome, Launch):
            findings.launches.append(outcome)
            return seen.model_copy(update={"handled": True, "launched": (*seen.launched, outcome.claim.run)})
        handled, report = True, outcome
    except (*EXPLAINED_ERRORS, OSError) as error:
        handled, report = False, f"{path.name}: nothing starts: {error}"
    except Exception as error:  # a defect that one folder meets must not stop the others
        handled, report = False, f"{path.name}: nothing starts: {type(error).__name__}: {error} (please report this)"
    said = digest(report) if report else None
    if report and said != seen.said:
        findings.reports.append(report)
    return seen.model_copy(update={"handled": handled, "said": said})


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
    return frozen_edits(claim, folder, next_run(store, folder.name))


class NothingToDo(DocmlError):
    """A folder without mistakes from which nothing can start now."""


def frozen_edits(claim: Claim, folder: ExperimentFolder, free: int) -> str | None:
    """What to say of a folder whose RUN_NUM is claimed already: nothing, if it says what the run froze."""
    changed = changed_keys(claim, folder)
    return describe_changes(claim, changed, free) if changed else None
