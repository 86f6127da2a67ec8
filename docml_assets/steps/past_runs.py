"""What a report compares a run with: the answers of the experiment's earlier runs, and what each run changed from the one before it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from docml_assets.runs.claims import DAMAGE, Claim, changed_keys, read_claim
from docml_assets.steps.reuse import earlier_runs
from docml_assets.steps.work import Work
from docml_assets.tables import read_parquet
from docml_contract.manifests import PreparedData
from docml_contract.names import PREPARED, SPLITS, SPLITS_TABLE, RunPlace
from resources.store.manifests import read_manifest, read_recorded

if TYPE_CHECKING:
    from docml_assets.report.comparison import PreviousRun

Documents = dict[str, tuple[str, str]]  # GUID -> label and split


@dataclass(frozen=True)
class PastRuns:
    """The earlier runs with a report of their own, newest first; and what this run changed from the newest of them."""

    runs: "tuple[PreviousRun, ...]"
    changed: tuple[str, ...]


def read_past_runs(work: Work) -> PastRuns:
    """The experiment's earlier runs, as its store has them. What of them cannot be read is passed over, and said."""
    found = [run for place in earlier_runs(work) if (run := _read_run(work, place)) is not None]
    contents = _Contents(work)
    newer, changes = work.place, list[tuple[str, ...]]()
    for run in found:
        older = RunPlace(work.place.experiment, run.run)
        changes.append(contents.changes(older, newer))
        newer = older
    own = changes[0] if changes else ()
    runs = (replace(run, changed=changed) for run, changed in zip(found, [*changes[1:], ()], strict=False))
    return PastRuns(tuple(runs), own)


def _read_run(work: Work, place: RunPlace) -> "PreviousRun | None":
    """An earlier run's predictions, if it has a report of its own (one that it took from another run says nothing new)."""
    from docml_assets.report.comparison import read_run

    try:
        manifest = read_manifest(work.store, place.inference)
        return read_run(work.store, place) if manifest is not None and manifest.run == place.number else None
    except DAMAGE as error:
        work.reporter.say(f"run {place.number} is not compared with: {error}")
        return None


class _Contents:
    """What runs were made of; each is read once."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.claims: dict[RunPlace, Claim | None] = {}
        self.documents: dict[str, Documents] = {}

    def changes(self, older: RunPlace, newer: RunPlace) -> tuple[str, ...]:
        """What the newer run changed: settings and functions by name, documents and labels by number; () where that cannot be read."""
        try:
            before, after = self._claim(older), self._claim(newer)
            keys = changed_keys(before, after) if before is not None and after is not None else []
            return (*keys, *describe_documents(self._documents(older), self._documents(newer)))
        except DAMAGE as error:
            self.work.reporter.say(f"what changed between runs {older.number} and {newer.number} is not known: {error}")
            return ()

    def _claim(self, place: RunPlace) -> Claim | None:
        if place not in self.claims:
            self.claims[place] = read_claim(self.work.store, place.experiment, place.number)
        return self.claims[place]

    def _documents(self, place: RunPlace) -> Documents | None:
        store = self.work.store
        if read_manifest(store, place.preparation) is None:
            return None
        key = f"{place.preparation}/{PREPARED}"
        folder = PreparedData.from_bytes(store.get(key), store.uri(key)).folder
        if folder not in self.documents:
            manifest = read_manifest(store, folder)
            if manifest is None:
                return None
            table = read_parquet(read_recorded(store, folder, manifest.file(SPLITS_TABLE)))
            columns = (table[name].to_pylist() for name in ("artifact_guid", "label", "split"))
            self.documents[folder] = {guid: (label, split) for guid, label, split in zip(*columns, strict=True)}
        return self.documents[folder]


def describe_documents(older: Documents | None, newer: Documents | None) -> Sequence[str]:
    """How many documents came, went and have another label, these by their split; nothing where one side is not known."""
    if older is None or newer is None or older is newer:
        return ()
    came, went = len(newer.keys() - older.keys()), len(older.keys() - newer.keys())
    by_split = Counter(split for guid, (label, split) in newer.items() if guid in older and older[guid][0] != label)
    relabelled = sum(by_split.values())
    where = ", ".join(f"{by_split[split]} {split}" for split in SPLITS if by_split[split])
    said = ((came, f"{_documents(came)} more"), (went, f"{_documents(went)} fewer"))
    labels = f"{relabelled:,} label{'s' if relabelled > 1 else ''} ({where})"
    return [text for count, text in (*said, (relabelled, labels)) if count]


def _documents(count: int) -> str:
    return f"{count:,} document{'s' if count > 1 else ''}"
