"""What of an experiment's storage nobody needs any more: plain functions over a store.

Kept: whatever a finished folder's manifest, a run's reconciled table or prepared.json names, and whatever a run that has
begun and not finished a step may still come to use. Claims, manifests, models, reports and job records always stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from docml_assets.runs.claims import claimed_runs
from docml_assets.tables import read_parquet
from docml_contract.manifests import PreparedData
from docml_contract.names import MANIFEST, PREPARED, RECONCILED_TABLE, ExperimentPlace, RunPlace
from resources.store import Store
from resources.store.manifests import read_manifest


@dataclass(frozen=True)
class Garbage:
    """A folder that can go."""

    experiment: str
    prefix: str
    what: str
    files: int
    size: int  # bytes


@dataclass(frozen=True)
class Kept:
    """Folders that stay because a run has not finished yet."""

    experiment: str
    what: str
    run: int
    step: str


def runs_of(store: Store, experiment: str) -> list[RunPlace]:
    """The experiment's claimed runs, by number."""
    return [RunPlace(experiment, number) for number in sorted(claimed_runs(store, experiment))]


def find_garbage(store: Store, experiment: str) -> tuple[list[Garbage], list[Kept]]:
    """What can go, and what stays only because of a run that has not finished."""
    runs = runs_of(store, experiment)
    if not runs:  # without a run the folder is not ours to judge
        return [], []
    garbage: list[Garbage] = []
    kept: list[Kept] = []
    shared = ExperimentPlace(experiment)
    unreconciled = [place for place in runs if read_manifest(store, place.reconciliation) is None]
    unprepared = [place for place in runs if read_manifest(store, place.preparation) is None]
    if unreconciled:
        kept.append(Kept(experiment, "versions of documents", unreconciled[0].number, "reconciliation"))
    else:
        garbage += _document_versions(store, shared, runs)
    if unprepared:
        kept.append(Kept(experiment, "prepared data", unprepared[0].number, "preparation"))
    else:
        garbage += _prepared_data(store, shared, runs)
    for place in runs:
        garbage += _checkpoints(store, place)
        garbage += _staged_output(store, place)
    return garbage, kept


def collect(store: Store, garbage: Garbage) -> None:
    """Delete one folder; its manifest goes first, so that no reader meets half of it."""
    keys = [stored.key for stored in store.list(garbage.prefix)]
    manifests = [key for key in keys if key.endswith(f"/{MANIFEST}")]
    store.delete(manifests)
    store.delete([key for key in keys if key not in set(manifests)])


def _measure(store: Store, experiment: str, prefix: str, what: str) -> Garbage:
    sizes = [stored.size for stored in store.list(prefix)]
    return Garbage(experiment, prefix, what, len(sizes), sum(sizes))


def _document_versions(store: Store, shared: ExperimentPlace, runs: list[RunPlace]) -> Iterator[Garbage]:
    """Versions of artifacts that no run's reconciled table names."""
    root = shared.reconciled_artifacts
    needed = set()
    for place in runs:
        table = read_parquet(store.get(f"{place.reconciliation}/{RECONCILED_TABLE}"))
        keys = table["key"].to_pylist()
        needed |= {key.rsplit("/", 1)[0] for key in keys}
    sizes: dict[str, list[int]] = {}
    for stored in store.list(root):
        sizes.setdefault(stored.key.rsplit("/", 1)[0], []).append(stored.size)
    for prefix, found in sizes.items():
        if prefix not in needed:
            yield Garbage(shared.experiment, prefix, "version of a document", len(found), sum(found))


def _prepared_data(store: Store, shared: ExperimentPlace, runs: list[RunPlace]) -> Iterator[Garbage]:
    """Prepared data that no run's prepared.json names."""
    needed = set()
    for place in runs:
        key = f"{place.preparation}/{PREPARED}"
        needed.add(PreparedData.from_bytes(store.get(key), key).folder)
    root = f"{shared.experiment}/data/prepared_data"
    for encoded_data_dir in store.list_folders(root):
        for key in store.list_folders(f"{root}/{encoded_data_dir}"):
            prefix = f"{root}/{encoded_data_dir}/{key}"
            if prefix not in needed:
                yield _measure(store, shared.experiment, prefix, "prepared data")


def _checkpoints(store: Store, place: RunPlace) -> Iterator[Garbage]:
    """Checkpoints of models that are trained."""
    root = f"{place.root}/checkpoints"
    for model in store.list_folders(root):
        trained = (place.trained(model, tuned=tuned) for tuned in (False, True))
        if any(read_manifest(store, folder) is not None for folder in trained):
            yield _measure(store, place.experiment, f"{root}/{model}", "checkpoints of a trained model")


def _staged_output(store: Store, place: RunPlace) -> Iterator[Garbage]:
    """What jobs handed over, once the run's report is finished: all of it has been published."""
    if read_manifest(store, place.inference) is None:
        return
    for job in store.list_folders(place.jobs):
        prefix = f"{place.job_folder(job)}/output"
        found = _measure(store, place.experiment, prefix, "staged output of a job")
        if found.files:
            yield found
