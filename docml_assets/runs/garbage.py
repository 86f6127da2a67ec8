"""What of an experiment's storage nobody needs any more: plain functions over a store.

Kept: whatever a finished folder's manifest, a run's reconciled table or prepared.json names, and whatever a run that has
begun and not finished a step may still come to use. Claims, manifests, models, reports, tables of predictions and job records always stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from docml_assets.runs.claims import read_or_note, run_folders
from docml_assets.tables import read_parquet
from docml_contract.base import UnreadableDocument
from docml_contract.manifests import PreparedData
from docml_contract.names import (
    ACTIVE_JOBS,
    FINISHED_PARTS,
    MANIFEST,
    PREDICTIONS,
    PREPARED,
    RECONCILED_TABLE,
    STAGED_DOCUMENTS,
    ExperimentPlace,
    RunPlace,
)
from resources.store import Store
from resources.store.manifests import read_finished, read_manifest


@dataclass(frozen=True)
class Garbage:
    """A folder that can go."""

    experiment: str
    prefix: str
    what: str
    files: int
    size: int  # bytes


@dataclass(frozen=True)
class Retention:
    """Folders that stay, because of a run that may still need them."""

    experiment: str
    what: str
    run: int
    reason: str


def runs_of(store: Store, experiment: str) -> list[RunPlace]:
    """The experiment's runs, by number; one whose claim was lost needs its data as well."""
    return [RunPlace(experiment, number) for number in run_folders(store, experiment)]


def find_garbage(store: Store, experiment: str) -> tuple[list[Garbage], list[Retention]]:
    """What can go, and what stays only because of a run that has not finished, or that cannot be read."""
    runs = runs_of(store, experiment)
    if not runs:  # without a run the folder is not ours to judge
        return [], []
    garbage: list[Garbage] = []
    kept: list[Retention] = []
    shared = ExperimentPlace(experiment)
    for what, step, needed_by, unneeded in (
        ("versions of documents", "reconciliation", _needed_versions, _document_versions),
        ("prepared data", "preparation", _needed_data, _prepared_data),
    ):
        needed: set[str] = set()
        reason = None
        for place in runs:
            damage: list[str] = []
            manifest = read_or_note(partial(read_manifest, store, getattr(place, step)), damage)
            if manifest is not None:
                needed |= read_or_note(partial(needed_by, store, place), damage) or set()
            if damage or manifest is None:
                reason = f"cannot be read ({damage[0]})" if damage else f"has not finished its {step}"
                kept.append(Retention(experiment, what, place.number, reason))
                break
        if reason is None:
            garbage += unneeded(store, shared, needed)
    under_way = {stored.key.rsplit("/", 1)[-1].removesuffix(".json") for stored in store.list(ACTIVE_JOBS)}
    for place in runs:
        if _is_busy(store, place, under_way):
            kept.append(Retention(experiment, "what its jobs left", place.number, "has a job under way"))
            continue
        for find in (_checkpoints, _staged_output, _prediction_leftovers):
            damage = []
            garbage += read_or_note(partial(find, store, place), damage) or []
            kept += [
                Retention(experiment, "what its jobs left", place.number, f"cannot be read ({text})") for text in damage
            ]
    return garbage, kept


def _is_busy(store: Store, place: RunPlace, under_way: set[str]) -> bool:
    """Whether one of the jobs under way is the run's: somebody asked for a prediction, say, of a run that is long finished."""
    return bool(under_way and under_way.intersection(store.list_folders(place.jobs)))


def collect(store: Store, garbage: Garbage) -> None:
    """Delete one folder; its manifest goes first, so that no reader meets half of it."""
    keys = [stored.key for stored in store.list(garbage.prefix)]
    manifests = [key for key in keys if key.endswith(f"/{MANIFEST}")]
    store.delete(manifests)
    store.delete([key for key in keys if key not in set(manifests)])


def _measure(store: Store, experiment: str, prefix: str, what: str) -> Garbage:
    sizes = [stored.size for stored in store.list(prefix)]
    return Garbage(experiment, prefix, what, len(sizes), sum(sizes))


def _needed_versions(store: Store, place: RunPlace) -> set[str]:
    """The folders of the documents' versions that a run's reconciled table names. Raises UnreadableDocument."""
    key = f"{place.reconciliation}/{RECONCILED_TABLE}"
    data = store.get(key)
    try:
        keys = read_parquet(data)["key"].to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UnreadableDocument(f"{store.uri(key)}: {error}") from error
    return {key.rsplit("/", 1)[0] for key in keys}


def _document_versions(store: Store, shared: ExperimentPlace, needed: set[str]) -> Iterator[Garbage]:
    """Versions of artifacts that no run needs."""
    sizes: dict[str, list[int]] = {}
    for stored in store.list(shared.reconciled_artifacts):
        sizes.setdefault(stored.key.rsplit("/", 1)[0], []).append(stored.size)
    for prefix, found in sizes.items():
        if prefix not in needed:
            yield Garbage(shared.experiment, prefix, "version of a document", len(found), sum(found))


def _needed_data(store: Store, place: RunPlace) -> set[str]:
    """The folder of the prepared data that a run's prepared.json names. Raises UnreadableDocument."""
    key = f"{place.preparation}/{PREPARED}"
    return {PreparedData.from_bytes(store.get(key), key).folder}


def _prepared_data(store: Store, shared: ExperimentPlace, needed: set[str]) -> Iterator[Garbage]:
    """Prepared data that no run needs."""
    root = f"{shared.experiment}/data/prepared_data"
    for encoded_data_dir in store.list_folders(root):
        for key in store.list_folders(f"{root}/{encoded_data_dir}"):
            prefix = f"{root}/{encoded_data_dir}/{key}"
            if prefix not in needed:
                yield _measure(store, shared.experiment, prefix, "prepared data")


def _checkpoints(store: Store, place: RunPlace) -> list[Garbage]:
    """Checkpoints of models that are trained, encoded parts of a preparation that is finished."""
    root = f"{place.root}/checkpoints"
    found = store.list_folders(root)
    parts = place.encoded_parts.removeprefix(f"{root}/")
    encoded = []
    if parts in found and read_manifest(store, place.preparation) is not None:
        encoded = [_measure(store, place.experiment, place.encoded_parts, "parts of a finished preparation")]
    trained = [
        model
        for model in found
        if model != parts
        and any(read_manifest(store, place.trained(model, tuned=tuned)) is not None for tuned in (False, True))
    ]
    return encoded + [
        _measure(store, place.experiment, f"{root}/{model}", "checkpoints of a trained model") for model in trained
    ]


def _prediction_leftovers(store: Store, place: RunPlace) -> list[Garbage]:
    """What a finished prediction needed, and what one left that was begun for documents which a finished one of its run has by now."""
    found = []
    finished = [folder for folder in _predictions(store, place) if read_manifest(store, folder) is not None]
    classified: set[str] | None = None
    for folder in _predictions(store, place):
        if folder in finished:
            found += [
                _measure(store, place.experiment, f"{folder}/{name}", "leftovers of a finished prediction")
                for name in (STAGED_DOCUMENTS, FINISHED_PARTS)
            ]
            continue
        if classified is None:
            classified = {guid for other in finished for guid in _guids(store, other)}
        begun = {
            stored.key.removeprefix(f"{folder}/{STAGED_DOCUMENTS}/").split("/")[0]
            for stored in store.list(f"{folder}/{STAGED_DOCUMENTS}")
        }
        if begun and begun <= classified:
            found.append(
                _measure(store, place.experiment, folder, "prediction that was begun, and that another has made since")
            )
    return [garbage for garbage in found if garbage.files]


def _predictions(store: Store, place: RunPlace) -> list[str]:
    return [f"{place.predictions}/{name}" for name in store.list_folders(place.predictions)]


def _guids(store: Store, folder: str) -> list[str]:
    """The documents of a finished prediction."""
    guids: list[str] = read_parquet(read_finished(store, folder, PREDICTIONS))["artifact_guid"].to_pylist()
    return guids


def _staged_output(store: Store, place: RunPlace) -> list[Garbage]:
    """What jobs handed over, once the run's report is finished: all of it has been published."""
    if read_manifest(store, place.inference) is None:
        return []
    prefixes = [f"{place.job_folder(job)}/output" for job in store.list_folders(place.jobs)]
    found = [_measure(store, place.experiment, prefix, "staged output of a job") for prefix in prefixes]
    return [garbage for garbage in found if garbage.files]
