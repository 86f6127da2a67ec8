"""The documents of a preparation: which are taken, in which order, with which labels; and what became of those that are no rows.

Which are taken follows from the table of artifacts and the task alone, so that every host of a job and its merge see the same list.
The order is that of the GUIDs' hashes: it depends on no other document, and cuts into parts that are alike.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from docml_contract.file_names import is_pattern, matches, matching
from docml_contract.jobs import PrepareTask
from docml_contract.manifests import sha256_file
from docml_contract.units import artifact_of, most_frequent
from docml_trainer.errors import DataError
from docml_trainer.functions import InputFile

IGNORED = "ignored_label"
BELOW_THRESHOLD = "below_num_labels_threshold"
OVER_CAP = "over_max_artifacts"
MAX_FAILURES_KEPT = 100

_COLUMNS = ("artifact_guid", "label", "group", "file", "path")
ETAG = "etag"  # of a folder store the content's sha256; of other stores nothing that can be compared
_SHA256 = re.compile(r"[0-9a-f]{64}")

Counts = dict[str, int]


@dataclass(frozen=True)
class Documents:
    """The taken documents. `paths[i]` holds document i's input files by entry of MODEL_INPUT_FILES: as many as a pattern matches,
    one for a name, none where it is missing.
    """

    guids: list[str]
    labels: list[str]
    groups: list[str | None]
    paths: list[list[list[str]]]
    digests: list[list[list[bytes | None]]]  # sha256 of each of `paths`, where it is known
    label_names: tuple[str, ...]  # in the order of their ids
    dropped: dict[str, Counts]  # reason -> label -> documents

    def __len__(self) -> int:
        return len(self.guids)

    @property
    def digest(self) -> str:
        """Tells two lists of documents apart."""
        content = "\n".join("\0".join(row) for row in zip(self.guids, self.labels, strict=True))
        return hashlib.sha256(content.encode()).hexdigest()

    def part(self, index: int, parts: int) -> range:
        """Positions of the `index`-th of `parts` contiguous, equally large parts."""
        return range(len(self) * index // parts, len(self) * (index + 1) // parts)

    def take(self, positions: Sequence[int]) -> "Documents":
        """Only the documents at these positions."""
        return replace(
            self,
            guids=[self.guids[position] for position in positions],
            labels=[self.labels[position] for position in positions],
            groups=[self.groups[position] for position in positions],
            paths=[self.paths[position] for position in positions],
            digests=[self.digests[position] for position in positions],
        )

    def to_table(self, positions: range) -> pa.Table:
        """Input of the encoders: position, artifact_guid, label, paths."""
        part = slice(positions.start, positions.stop)
        return pa.table(
            {
                "position": pa.array(positions, pa.int64()),
                "artifact_guid": pa.array(self.guids[part], pa.string()),
                "label": pa.array(self.labels[part], pa.string()),
                "paths": pa.array(self.paths[part], pa.list_(pa.list_(pa.string()))),
                "digests": pa.array(self.digests[part], pa.list_(pa.list_(pa.binary()))),
            }
        )


def order_key(guid: str, salt: str = "") -> bytes:
    """Orders GUIDs the same way everywhere; another salt gives an unrelated order."""
    return hashlib.sha256(f"{salt}\0{guid}".encode()).digest()


def read_documents(artifacts: Path, task: PrepareTask) -> Documents:
    """Read artifacts.parquet (one row a file) and apply IGNORED_LABELS, NUM_LABELS_THRESHOLD and MAX_ARTIFACTS."""
    rows = _read_rows(artifacts, task.model_input_files)
    taken, dropped = _select(rows, task)
    if not taken:
        raise DataError(
            f"no document is left of {len(rows)} (dropped: {dropped}); expected some: "
            "check IGNORED_LABELS, NUM_LABELS_THRESHOLD and MAX_ARTIFACTS"
        )
    ordered = sorted(taken, key=order_key)
    return Documents(
        guids=ordered,
        labels=[rows[guid].label for guid in ordered],
        groups=[rows[guid].group for guid in ordered],
        paths=[[rows[guid].paths_of(entry) for entry in task.model_input_files] for guid in ordered],
        digests=[[rows[guid].digests_of(entry) for entry in task.model_input_files] for guid in ordered],
        label_names=tuple(sorted({rows[guid].label for guid in ordered})),
        dropped=dropped,
    )


@dataclass(frozen=True)
class _Row:
    label: str
    group: str | None
    paths: dict[str, str]
    digests: dict[str, bytes]

    def paths_of(self, entry: str) -> list[str]:
        """The paths of the files that an entry of MODEL_INPUT_FILES means."""
        return [self.paths[file] for file in self._files_of(entry)]

    def digests_of(self, entry: str) -> list[bytes | None]:
        """The sha256 of these files, where it is known."""
        return [self.digests.get(file) for file in self._files_of(entry)]

    def _files_of(self, entry: str) -> Sequence[str]:
        """In natural order where the entry is a pattern."""
        if is_pattern(entry):
            return matching(self.paths, entry)
        return [entry] if entry in self.paths else []


def _read_rows(artifacts: Path, entries: Sequence[str]) -> dict[str, _Row]:
    if not artifacts.is_file():
        raise DataError(f"{artifacts}: no such file; expected the table of reconciled artifacts in the channel 'spec'")
    schema = pq.read_schema(artifacts)
    missing = [column for column in _COLUMNS if column not in schema.names]
    if missing:
        raise DataError(f"{artifacts.name}: found columns {schema.names}, expected also {missing}")
    rows: dict[str, _Row] = {}
    columns = [*_COLUMNS, *([ETAG] if ETAG in schema.names else [])]
    for batch in pq.ParquetFile(artifacts).iter_batches(columns=columns):
        for guid, label, group, file, path, *etag in zip(*(batch[name].to_pylist() for name in columns), strict=True):
            row = rows.get(guid)
            if row is None:
                row = rows[guid] = _Row(label, None if group is None else str(group), {}, {})
            elif row.label != label:
                raise DataError(
                    f"{artifacts.name}: artifact {guid} has labels {row.label!r} and {label!r}; expected one "
                    "(reconciliation settles conflicts)"
                )
            # A document that lacks all of its files, which are optional then, has a row without a file.
            if file is not None and any(matches(file, entry) for entry in entries):
                row.paths[file] = path
                if etag and etag[0] and _SHA256.fullmatch(etag[0]):
                    row.digests[file] = bytes.fromhex(etag[0])
    return rows


def _select(rows: dict[str, _Row], task: PrepareTask) -> tuple[list[str], dict[str, Counts]]:
    """The documents that are taken, and how many artifacts are not, by reason and label. Units of an artifact count as one."""
    counts = Counter(label for label, _ in {(row.label, artifact_of(guid)) for guid, row in rows.items()})
    ignored = {label for label in counts if label in task.ignored_labels}
    rare = {label for label, count in counts.items() if count < task.num_labels_threshold} - ignored
    of_artifact: dict[str, list[str]] = {}
    for guid, row in rows.items():
        if row.label not in ignored and row.label not in rare:
            of_artifact.setdefault(artifact_of(guid), []).append(guid)
    by_label: dict[str, list[str]] = {}
    for artifact, own in of_artifact.items():
        by_label.setdefault(most_frequent([rows[guid].label for guid in own]), []).append(artifact)
    quotas = _quotas({label: len(guids) for label, guids in by_label.items()}, task.max_artifacts)
    taken = [
        guid
        for label, artifacts in by_label.items()
        for artifact in sorted(artifacts, key=lambda artifact: order_key(artifact, "cap"))[: quotas[label]]
        for guid in of_artifact[artifact]
    ]
    over = {label: len(found) - quotas[label] for label, found in by_label.items() if len(found) > quotas[label]}
    return taken, {
        IGNORED: {label: counts[label] for label in sorted(ignored)},
        BELOW_THRESHOLD: {label: counts[label] for label in sorted(rare)},
        OVER_CAP: dict(sorted(over.items())),
    }


def _quotas(counts: Counts, cap: int | None) -> Counts:
    """How many documents of each label stay under MAX_ARTIFACTS: proportional, largest remainders first."""
    total = sum(counts.values())
    if cap is None or total <= cap:
        return counts
    exact = {label: count * cap / total for label, count in counts.items()}
    quotas = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(counts, key=lambda label: (quotas[label] - exact[label], label))
    for label in by_remainder[: cap - sum(quotas.values())]:
        quotas[label] += 1
    return quotas


def labels_too_small(documents: Documents, shares: Sequence[float]) -> Counts:
    """Labels with fewer independent documents (SPLIT_BY groups) than there are splits: they cannot appear in every one."""
    independent: dict[str, set[str]] = {}
    for guid, label, group in zip(documents.guids, documents.labels, documents.groups, strict=True):
        independent.setdefault(label, set()).add(f"document {artifact_of(guid)}" if group is None else f"group {group}")
    needed = sum(share > 0 for share in shares)
    return {label: len(found) for label, found in sorted(independent.items()) if len(found) < needed}


# --- on the way through the encoder


@dataclass(frozen=True)
class InputDocument:
    """One document on its way through the encoder: its files by name or pattern, and what it lacks although it may not."""

    position: int
    guid: str
    label: str
    files: Mapping[str, InputFile]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class EncodingFailure:
    """A document that could not be encoded."""

    artifact_guid: str
    label: str
    file: str
    error: str

    def __str__(self) -> str:
        return f"artifact {self.artifact_guid} (label {self.label!r}, file {self.file}): {self.error}"


class Instance(dict[str, InputFile]):
    """The mapping that encode_data gets; remembers the file that was asked for last, to name it when reading fails."""

    def __init__(self, files: Mapping[str, InputFile]) -> None:
        super().__init__(files)
        self.asked: str | None = None

    def __getitem__(self, file: str) -> InputFile:
        self.asked = file
        return super().__getitem__(file)


@dataclass
class Tally:
    """What became of the documents that are no rows."""

    returned_none: dict[str, int] = field(default_factory=dict)  # by label
    failed: dict[str, int] = field(default_factory=dict)  # by label
    failures: list[EncodingFailure] = field(default_factory=list)  # of several parts together the first ones

    def drop(self, label: str) -> None:
        """Count a document for which the encoder returned None."""
        self.returned_none[label] = self.returned_none.get(label, 0) + 1

    def fail(self, failure: EncodingFailure) -> None:
        """Count a document that could not be encoded; the first 100 are kept with their reasons."""
        self.failed[failure.label] = self.failed.get(failure.label, 0) + 1
        self.failures.append(failure)

    def add(self, other: "Tally") -> None:
        """Count another tally's documents as well."""
        for mine, theirs in ((self.returned_none, other.returned_none), (self.failed, other.failed)):
            for label, count in theirs.items():
                mine[label] = mine.get(label, 0) + count
        self.failures = (self.failures + other.failures)[:MAX_FAILURES_KEPT]

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Tally":
        """A tally out of a part's report, or of a shard."""
        failures = [EncodingFailure(**failure) for failure in content["failures"]]
        return cls(dict(content["returned_none"]), dict(content["failed"]), failures)


def read_batch(batch: Mapping[str, Sequence[Any]], task: PrepareTask, folder: Path, prefix: str) -> list[InputDocument]:
    """Documents out of a batch of `Documents.to_table`; `folder` is the channel in which their files lie, `prefix` its place in the store.

    DataError names the files that do not hold what was recorded when they were copied or made. They are read for that just before
    the encoder reads them, from memory then.
    """
    documents, damaged = [], []
    columns = ("position", "artifact_guid", "label", "paths", "digests")
    for position, guid, label, paths, digests in zip(*(batch[key] for key in columns), strict=True):
        damaged += [
            path
            for own, known in zip(paths, digests, strict=True)
            for path, digest in zip(own, known, strict=True)
            if digest is not None and not _holds(folder / path, digest)
        ]
        found = dict(zip(task.model_input_files, paths, strict=True))
        missing = tuple(entry for entry, own in found.items() if not own and entry not in task.optional_files)
        files = {entry: _input_file(entry, [folder / path for path in own]) for entry, own in found.items()}
        documents.append(InputDocument(position, guid, label, files, missing))
    if damaged:
        shown = ", ".join(f"{prefix}/{path}" for path in damaged[:5])
        raise DataError(
            f"{shown}{f' and {len(damaged) - 5} more' if len(damaged) > 5 else ''}: the content differs from what was recorded when it was "
            "copied or made: it is damaged. Remove it from the store and execute the run again, which copies or makes it anew"
        )
    return documents


def _holds(path: Path, digest: bytes) -> bool:
    """Whether a file holds what it should. One that is not there is the encoder's to say."""
    try:
        return sha256_file(path) == digest.hex()
    except FileNotFoundError:
        return True


def _input_file(entry: str, paths: list[Path]) -> InputFile:
    """What encode_data gets: for a pattern all paths, for a name its path or None."""
    return paths if is_pattern(entry) else paths[0] if paths else None
