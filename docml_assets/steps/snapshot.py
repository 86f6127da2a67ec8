"""experiment_snapshot: a run's frozen settings and functions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docml_assets.errors import DocmlError, SettingsError
from docml_assets.experiment.folder import ExperimentFolder
from docml_assets.experiment.settings.settings import Settings
from docml_assets.runs.claims import (
    Claim,
    changed_keys,
    claim_run,
    describe_changes,
    next_run,
    read_claim,
    write_snapshot,
)
from docml_assets.runs.preflight import validate
from docml_assets.steps.work import Outcome, UnclaimedRun
from docml_contract.names import EXPERIMENT_SNAPSHOT, RunPlace
from resources.store import Store
from resources.store.manifests import check_finished, read_manifest


def frozen_settings(claim: Claim, operation: Mapping[str, Any] | None) -> Settings:
    """The claim's settings; `operation` (keys that do not freeze, from the folder or a tag) goes before the claim's own."""
    return claim.settings.with_operational({**operation, "run_num": claim.run}) if operation else claim.settings


def operated_settings(claim: Claim, path: Path) -> tuple[Settings, str | None]:
    """The claim's settings with those that do not freeze as the experiment folder has them now.

    Where it cannot be read, the claim's own, and the sentence that says so.
    """
    try:
        return frozen_settings(claim, ExperimentFolder.load(path).settings.operational()), None
    except DocmlError as error:
        first = str(error).splitlines()[0]
        return (
            claim.settings,
            f"the experiment folder cannot be read ({first}); going on with the settings the run was claimed with",
        )


def describe_folder(store: Store, claim: Claim, path: Path) -> str | None:
    """What is said where a run is executed whose experiment folder has changed since its claim; None if it has not, or is gone."""
    try:
        folder = ExperimentFolder.load(path)
        changed = changed_keys(claim, folder)
    except DocmlError:
        return None
    return describe_changes(claim, changed, next_run(store, claim.experiment)) if changed else None


def existing_claim(store: Store, place: RunPlace, recorded: str | None = None) -> Claim:
    """The claim of a run that must have one, compared with its snapshot and with what Dagster's event log recorded of it."""
    claim = read_claim(store, place.experiment, place.number)
    if claim is None:
        raise UnclaimedRun(
            f"{place.experiment} run {place.number} is not claimed: materialize experiment_snapshot for this partition first, "
            f"or start the run with: docml run {place.experiment} --run {place.number}"
        )
    claim.check_frozen(read_manifest(store, place.snapshot), recorded)
    return claim


def claim_from_ui(
    store: Store,
    place: RunPlace,
    folder: Path,
    environment: Mapping[str, str],
    *,
    holder: str,
    trigger: Mapping[str, Any],
    backfill: bool = False,
) -> Claim:
    """The run's claim, made now if nobody made it and the run is the experiment's RUN_NUM or, outside a backfill, its next free number.

    A partition can be selected for every experiment and run number there ever was ("materialize all missing"); a backfill therefore
    makes nothing but RUN_NUM come into being, and all comes from a folder without mistakes. UnclaimedRun for any other number.
    """
    claim = read_claim(store, place.experiment, place.number)
    if claim is not None:
        return claim
    if not folder.is_dir():
        raise UnclaimedRun(
            f"{place.experiment} run {place.number} is not claimed, and there is no experiment folder {folder}: create it with "
            f"`docml new {place.experiment}`, or delete this partition key if it is a mistake"
        )
    try:
        experiment = ExperimentFolder.load(folder)
        number = experiment.settings.run_num
    except DocmlError as error:
        if backfill:
            raise UnclaimedRun(
                f"{place.experiment} run {place.number} is not claimed, and its folder cannot be read: {error}"
            ) from error
        raise
    free = next_run(store, place.experiment)
    if place.number not in ((number,) if backfill else (number, free)):
        raise UnclaimedRun(_not_yours(place, number, free, folder))
    problems = validate(folder, environment)
    if problems:
        raise SettingsError(problems)
    return claim_run(store, experiment, place.number, trigger=dict(trigger), request_id=holder)


def _not_yours(place: RunPlace, number: int, free: int, folder: Path) -> str:
    return (
        f"{place.experiment} run {place.number} is not claimed: expected a claimed run, the experiment's RUN_NUM ({number}) or the "
        f"next free number ({free}). Choose run {free}, or set RUN_NUM = {place.number} in {folder / 'settings.ini'} and materialize "
        f"again, or use `docml run {place.experiment} --run {place.number}`"
    )


def snapshot(store: Store, claim: Claim) -> Outcome:
    """Write the readable files of a claim, or verify them."""
    place = RunPlace(claim.experiment, claim.run)
    manifest = read_manifest(store, place.snapshot)
    made = manifest is None
    if manifest is None:
        manifest = write_snapshot(store, claim)
    else:
        check_finished(store, manifest, place.snapshot)
    return Outcome(
        asset=EXPERIMENT_SNAPSHOT,
        how="made" if made else "finished",
        why="settings and functions are frozen" if made else f"frozen since {manifest.created_at} and verified",
        data_version=manifest.data_version,
        inputs=manifest.inputs,
        folders={"": place.snapshot},
        manifests={"": manifest},
    )
