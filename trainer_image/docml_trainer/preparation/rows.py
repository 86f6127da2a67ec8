"""The encoders' rows -> the data sets of the splits. Read as streams, batch by batch: memory does not grow with the documents.

On disk integers take the smallest type that holds every value of the data set, and lists have their own length: padding and
int64 are the collator's business. Only what is declared as uint8 is stored as uint8: pixels, which stay what they are.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from docml_contract.names import SPLITS
from docml_trainer.data.shapes import ARTIFACT_GUID, LABELS, Shape, shape_of
from docml_trainer.preparation.documents import Documents
from docml_trainer.preparation.encoder import DIGEST, POSITION, SIGNATURE, TOKENS, UNTRUNCATED
from docml_trainer.preparation.near_duplicates import PERMUTATIONS

# Rows are read, and a split's rows are written, in batches of this size: large enough to be quick, small enough for memory.
BATCH_ROWS = 1000
BATCH_BYTES = 2**20
_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Overview:
    """What has to be known of all rows before the first one is written."""

    positions: Array  # int64[rows], ascending
    digests: list[bytes]
    signatures: Array | None  # uint32[rows, 128]
    tokens: dict[str, Array]  # model -> float64[rows], NaN where unknown
    untruncated: dict[str, Array]
    limits: dict[str, tuple[int, int]]  # integer feature -> smallest and largest value


def read_batches(files: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """The rows of all files, in order."""
    pending = _RowBuffer()
    for file in files:
        with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                pending.add(batch)
                if pending.is_enough:
                    yield pending.take()
    if pending.rows:
        yield pending.take()


class _RowBuffer:
    """Collects small batches until they make a large one."""

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self.rows = self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self.rows += len(batch)
        self._bytes += batch.nbytes

    @property
    def is_enough(self) -> bool:
        return self.rows >= BATCH_ROWS or self._bytes >= BATCH_BYTES

    def take(self) -> pa.RecordBatch:
        batches, self._batches = self._batches, []
        self.rows = self._bytes = 0
        return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def read_overview(
    files: Sequence[Path], features: datasets.Features, models: Sequence[str], *, signed: bool
) -> Overview:
    """One pass over the rows."""
    positions: list[Array] = []
    digests: list[bytes] = []
    signatures: list[Array] = []
    tokens: dict[str, list[Array]] = {model: [] for model in models}
    untruncated: dict[str, list[Array]] = {model: [] for model in models}
    limits: dict[str, tuple[int, int]] = {}
    integers = [name for name, feature in features.items() if shape_of(name, feature).is_integer]
    for batch in read_batches(files):
        positions.append(batch[POSITION].to_numpy().copy())  # a view would keep the whole batch alive
        digests += batch[DIGEST].to_pylist()
        if signed:
            joined = b"".join(batch[SIGNATURE].to_pylist())
            signatures.append(np.frombuffer(joined, dtype=np.uint32).reshape(-1, PERMUTATIONS))
        for model in models:
            tokens[model].append(_as_floats(batch[TOKENS + model]))
            untruncated[model].append(_as_floats(batch[UNTRUNCATED + model]))
        for name in integers:
            _widen(limits, name, _innermost(batch[name]))
    return Overview(
        positions=_joined(positions, np.int64),
        digests=digests,
        signatures=np.concatenate(signatures) if signatures else None,
        tokens={model: _joined(found, np.float64) for model, found in tokens.items()},
        untruncated={model: _joined(found, np.float64) for model, found in untruncated.items()},
        limits=limits,
    )


def stored_features(
    features: datasets.Features, limits: Mapping[str, tuple[int, int]], labels: Sequence[str]
) -> datasets.Features:
    """The features as they are saved: the declared ones in their smallest type, `labels` and `artifact_guid`."""
    stored = {name: _narrowed(name, feature, limits.get(name)) for name, feature in features.items()}
    return datasets.Features(
        {**stored, LABELS: datasets.ClassLabel(names=list(labels)), ARTIFACT_GUID: datasets.Value("string")}
    )


def write_splits(
    files: Sequence[Path],
    documents: Documents,
    splits: Mapping[int, str],
    features: datasets.Features,
    output: Path,
    version: str,
) -> None:
    """Write `output/train|valid|test` in the datasets format; `splits`: by position, without those left out.

    Rows keep their order, which is that of the GUIDs' hashes.
    """
    writers = {split: _SplitWriter(output / split, features, version) for split in SPLITS}
    ids = {label: index for index, label in enumerate(documents.label_names)}
    names = [name for name in features if name not in (LABELS, ARTIFACT_GUID)]
    for batch in read_batches(files):
        positions = batch[POSITION].to_pylist()
        for split, writer in writers.items():
            chosen = [index for index, position in enumerate(positions) if splits.get(position) == split]
            if not chosen:
                continue
            part = batch.take(pa.array(chosen))
            taken = [positions[index] for index in chosen]
            arrays = {name: _stored(part[name], features[name]) for name in names}
            arrays[LABELS] = pa.array([ids[documents.labels[position]] for position in taken], pa.int64())
            arrays[ARTIFACT_GUID] = pa.array([documents.guids[position] for position in taken], pa.string())
            writer.write(pa.RecordBatch.from_pydict(arrays, schema=writer.schema))
    for writer in writers.values():
        writer.close()


def write_unlabelled(files: Sequence[Path], documents: Documents, features: datasets.Features, output: Path) -> None:
    """Write all rows as one data set of the declared features and `artifact_guid`, without labels."""
    stored = datasets.Features({**features, ARTIFACT_GUID: datasets.Value("string")})
    writer = _SplitWriter(output, stored, documents.digest)
    for batch in read_batches(files):
        arrays = {name: _stored(batch[name], feature) for name, feature in features.items()}
        guids = [documents.guids[position] for position in batch[POSITION].to_pylist()]
        arrays[ARTIFACT_GUID] = pa.array(guids, pa.string())
        writer.write(pa.RecordBatch.from_pydict(arrays, schema=writer.schema))
    writer.close()


def data_version(documents: Documents, found: Overview, splits: Mapping[int, str], features: datasets.Features) -> str:
    """sha256 over the rows (GUID, label, group, split, digest of the values) in the order of the GUIDs, and the features' names."""
    version = hashlib.sha256(json.dumps(["encoded_splits", sorted(features), documents.label_names]).encode())
    rows = sorted(zip(found.positions.tolist(), found.digests, strict=True), key=lambda row: documents.guids[row[0]])
    for position, digest in rows:
        if position in splits:
            row = [documents.guids[position], documents.labels[position], documents.groups[position], splits[position]]
            version.update(json.dumps(row).encode())
            version.update(digest)
    return version.hexdigest()


class _SplitWriter:
    """One split's folder. The library writes an empty data set, whose data file is then replaced by a stream of batches."""

    def __init__(self, folder: Path, features: datasets.Features, version: str) -> None:
        self.schema = features.arrow_schema
        empty = datasets.Dataset(
            self.schema.empty_table(), info=datasets.DatasetInfo(features=features), fingerprint=version[:16]
        )
        empty.save_to_disk(str(folder), num_shards=1)
        (data,) = folder.glob("*.arrow")
        self._pending = _RowBuffer()
        self._sink = pa.OSFile(str(data), "wb")
        self._writer = pa.ipc.new_stream(self._sink, self.schema)

    def write(self, rows: pa.RecordBatch) -> None:
        self._pending.add(rows)
        if self._pending.is_enough:
            self._writer.write_batch(self._pending.take())

    def close(self) -> None:
        if self._pending.rows:
            self._writer.write_batch(self._pending.take())
        self._writer.close()
        self._sink.close()


def _stored(array: pa.Array, feature: Any) -> pa.Array:
    """Variable lists of the declared type -> the stored feature's Arrow type."""
    if isinstance(feature, datasets.Array2D | datasets.Array3D | datasets.Array4D | datasets.Array5D):
        kind = feature()
        return pa.ExtensionArray.from_storage(kind, array.cast(kind.storage_type))
    if isinstance(feature, datasets.List | datasets.LargeList):
        inner = _stored(array.flatten(), feature.feature)
        if isinstance(feature, datasets.LargeList):
            return pa.LargeListArray.from_arrays(_offsets(array).cast(pa.int64()), inner)
        if feature.length != -1:
            return pa.FixedSizeListArray.from_arrays(inner, feature.length)
        return pa.ListArray.from_arrays(_offsets(array), inner)
    return array.cast(feature() if callable(feature) else feature.pa_type)


def _offsets(array: pa.ListArray) -> pa.Array:
    """Offsets that begin at 0, as `flatten()` needs them."""
    return pc.subtract(array.offsets, array.offsets[0])


def _narrowed(name: str, feature: Any, limits: tuple[int, int] | None) -> Any:
    shape = shape_of(name, feature)
    if not shape.is_integer or isinstance(feature, datasets.ClassLabel):
        return feature
    return _with_dtype(feature, _smallest(shape, limits or (0, 0)))


def _smallest(shape: Shape, limits: tuple[int, int]) -> str:
    allowed = (kind for kind in _INTEGERS if kind != "uint8" or shape.dtype == "uint8")
    fitting = (kind for kind in allowed if np.iinfo(kind).min <= limits[0] and limits[1] <= np.iinfo(kind).max)
    return min(fitting, default=shape.dtype, key=lambda kind: np.dtype(kind).itemsize)


def _with_dtype(feature: Any, dtype: str) -> Any:
    if isinstance(feature, datasets.List | datasets.LargeList):
        return replace(feature, feature=_with_dtype(feature.feature, dtype))
    if isinstance(feature, datasets.Value):
        return datasets.Value(dtype)
    if isinstance(feature, datasets.ClassLabel):
        return feature
    return type(feature)(shape=feature.shape, dtype=dtype)


def _widen(limits: dict[str, tuple[int, int]], name: str, values: pa.Array) -> None:
    extremes = pc.min_max(values).as_py()
    if extremes["min"] is not None:
        low, high = limits.get(name, (extremes["min"], extremes["max"]))
        limits[name] = (min(low, extremes["min"]), max(high, extremes["max"]))


def _innermost(array: pa.Array) -> pa.Array:
    while pa.types.is_list(array.type):
        array = array.flatten()
    return array


def _as_floats(array: pa.Array) -> Array:
    return np.asarray(array.cast(pa.float64()).to_numpy(zero_copy_only=False))


def _joined(parts: list[Array], dtype: Any) -> Array:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)
