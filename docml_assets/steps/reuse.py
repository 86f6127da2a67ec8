"""Finished folders: this run's own, and those of earlier runs that a step may take instead of working."""

from collections.abc import Callable, Mapping

import pyarrow as pa

from docml_assets.runs.claims import DAMAGE, claimed_runs, read_claim
from docml_assets.steps.snapshot import frozen_settings
from docml_assets.steps.work import NothingToReuse, NotReady, Outcome, Work
from docml_assets.tables import read_parquet
from docml_contract.base import IncompleteArtifact, UnreadableDocument
from docml_contract.manifests import Manifest, PreparedData
from docml_contract.names import MANIFEST, PREPARED, SPLITS_TABLE, RunPlace
from resources.store.manifests import check_finished, read_manifest, read_recorded

# Runs that agree in these keep each other's assignments to splits.
SPLIT_KEYS = ("split", "split_seed", "split_by", "encoded_data_dir")


def find_finished(work: Work, folder: str) -> Outcome | None:
    """The outcome of a step whose folder is finished, verified; None if there is no manifest.

    IncompleteArtifact if files of a finished folder are missing or differ.
    """
    manifest = read_manifest(work.store, folder)
    if manifest is None:
        return None
    check_finished(work.store, manifest, folder)
    why = f"finished on {manifest.created_at} and verified; no job was launched"
    if manifest.run != work.place.number:
        why += f" (its data come from run {manifest.run})"
    return Outcome.of(work, manifest, folder, how="finished", why=why)


def read_required(work: Work, folder: str, asset: str) -> Manifest:
    """The manifest of an asset that a step reads; NotReady says how to get it."""
    manifest = read_manifest(work.store, folder)
    if manifest is None:
        raise NotReady(
            f"{work.describe()}: {asset} has not been materialized in this run (no {work.store.uri(folder)}/{MANIFEST}): "
            f"materialize {asset} for this partition first, or select it together with this asset"
        )
    return manifest


def earlier_runs(work: Work) -> list[RunPlace]:
    """The experiment's claimed runs before this one, newest first."""
    numbers = [n for n in claimed_runs(work.store, work.place.experiment) if n < work.place.number]
    return [RunPlace(work.place.experiment, n) for n in sorted(numbers, reverse=True)]


Candidates = Callable[[RunPlace], Mapping[str, str]]
Fits = Callable[[Mapping[str, Manifest]], bool]


def take_earlier(
    work: Work, candidates: Candidates, targets: Mapping[str, str], fits: Fits
) -> dict[str, Manifest] | None:
    """Copy the newest earlier run's finished folders that fit into this run's; None if there are none.

    `candidates` gives an earlier run's folders and `targets` this run's, both keyed alike (by model, or ""). The copied manifests
    stay as they are: `manifest.run` still names the run that made the artifact. A damaged earlier artifact is passed over, and said.
    """
    for place in earlier_runs(work):
        folders = candidates(place)
        try:
            found = {key: read_manifest(work.store, folder) for key, folder in folders.items()}
            manifests = {key: manifest for key, manifest in found.items() if manifest is not None}
            if not manifests or manifests.keys() != targets.keys() or not fits(manifests):
                continue
            for key, manifest in manifests.items():
                check_finished(work.store, manifest, folders[key])
        except (IncompleteArtifact, UnreadableDocument) as error:
            work.reporter.say(f"run {place.number} cannot be reused: {error}")
            continue
        for key, manifest in manifests.items():
            pairs = [(f"{folders[key]}/{entry.path}", f"{targets[key]}/{entry.path}") for entry in manifest.files]
            work.store.copy_many(work.store, pairs)
            check_finished(work.store, manifest, targets[key])
            work.store.put(f"{targets[key]}/{MANIFEST}", manifest.to_bytes())
        return manifests
    return None


def reused_outcome(
    asset: str, manifests: Mapping[str, Manifest], folders: Mapping[str, str], data_version: str
) -> Outcome:
    """The outcome of a step that took an earlier run's artifact."""
    first = next(iter(manifests.values()))
    return Outcome(
        asset=asset,
        how="reused",
        why=f"not performed in this run; taken from run {first.run}",
        data_version=data_version,
        inputs=first.inputs,
        folders=folders,
        manifests=manifests,
        reused_from=first.run,
    )


def nothing_to_reuse(work: Work, step: str, fitting: str) -> NothingToReuse:
    """The error where a step that is performed needs one that is not and has nothing to take."""
    return NothingToReuse(
        f"{work.describe()}: the step {step} is not performed, a later step needs it, and no earlier run has a finished artifact "
        f"{fitting}: set RUN_{step.upper()} = true (or name it in --steps) so that it is performed"
    )


def read_previous_splits(work: Work) -> pa.Table | None:
    """The assignments of earlier runs with the same SPLIT, SPLIT_SEED and SPLIT_BY, so that no document changes sides.

    A document that several earlier runs had keeps its newest assignment. None if there are none.
    """
    tables: dict[str, pa.Table] = {}
    for place in earlier_runs(work):
        try:
            folder = _folder_with_our_split(work, place)
            if folder is not None and folder not in tables:
                tables[folder] = _read_splits(work, folder)
        except DAMAGE as error:
            work.reporter.say(f"the splits of run {place.number} cannot be read and are not kept: {error}")
    if not tables:
        return None
    frame = pa.concat_tables(tables.values(), promote_options="default").to_pandas()
    frame = frame.drop_duplicates("artifact_guid", keep="first").sort_values("artifact_guid")
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def _read_splits(work: Work, folder: str) -> pa.Table:
    """splits.parquet, which holds what the manifest says, where that can be read."""
    try:
        manifest = read_manifest(work.store, folder)
    except UnreadableDocument:
        manifest = None
    if manifest is None:
        return read_parquet(work.store.get(f"{folder}/{SPLITS_TABLE}"))
    return read_parquet(read_recorded(work.store, folder, manifest.file(SPLITS_TABLE)))


def _folder_with_our_split(work: Work, place: RunPlace) -> str | None:
    """Where an earlier run's prepared data lie, if it has some that were split by the same settings."""
    claim = read_claim(work.store, place.experiment, place.number)
    if claim is None or read_manifest(work.store, place.preparation) is None:
        return None
    theirs, mine = frozen_settings(claim, None), work.settings
    if any(getattr(theirs, key) != getattr(mine, key) for key in SPLIT_KEYS):
        return None
    key = f"{place.preparation}/{PREPARED}"
    return PreparedData.from_bytes(work.store.get(key), key).folder
