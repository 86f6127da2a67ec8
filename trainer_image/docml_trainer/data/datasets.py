"""The encoded splits as the training reads them: labels and one model's columns, rows by number, lengths without reading rows."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from docml_trainer.data.pictures import decode_picture
from docml_trainer.data.shapes import ARTIFACT_GUID, LABELS, Shape, main_feature, model_shapes, shape_of
from docml_trainer.errors import DataError

_views: WeakKeyDictionary[datasets.Dataset, tuple[datasets.Dataset, dict[str, Shape]]] = WeakKeyDictionary()
Rows = np.ndarray[Any, np.dtype[np.int64]]  # numbers of rows of a data set


def load_split(folder: Path, prefix: str) -> datasets.Dataset:
    """A split with the labels and this model's columns. DataError if it is missing or empty."""
    if not (folder / "dataset_info.json").is_file():
        raise DataError(
            f"{folder}: no data set; expected the split that preparation wrote (training never runs without it)"
        )
    if not any(folder.glob("*.arrow")) or not len(split := datasets.load_from_disk(str(folder))):
        raise DataError(f"{folder}: the split has no documents; expected at least one (raise its share in SPLIT)")
    if LABELS not in split.features or not isinstance(split.features[LABELS], datasets.ClassLabel):
        raise DataError(f"{folder}: found columns {sorted(split.features)}; expected labels as a ClassLabel among them")
    return split.select_columns([name for name in split.features if name == LABELS or name.startswith(prefix)])


def fetch(data: datasets.Dataset, rows: Rows) -> list[dict[str, Any]]:
    """Rows as the collator takes them, each with its `row_id`.

    A feature's values are an array of the stored type, or a list of arrays where inner lists may differ in length. Pictures are decoded
    here: uint8[3, height, width].
    """
    arrow, shapes = _view(data)
    table = arrow[rows.tolist()]
    columns = {
        name: column.to_pylist() if name == ARTIFACT_GUID else document_values(column, shapes[name])
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return [
        {name: values[index] for name, values in columns.items()} | {"row_id": int(row)}
        for index, row in enumerate(rows)
    ]


def _view(data: datasets.Dataset) -> tuple[datasets.Dataset, dict[str, Shape]]:
    """The data set in its Arrow format, and its features' shapes; remembered as long as the data set lives, since to make the one and to
    ask for the other costs more than reading a row."""
    if data not in _views:
        shapes = {name: shape_of(name, feature) for name, feature in data.features.items() if name != ARTIFACT_GUID}
        _views[data] = data.with_format("arrow"), shapes
    return _views[data]


def leaves(value: Any) -> np.ndarray[Any, Any]:
    """All numbers of a feature of a fetched row, one after the other."""
    if isinstance(value, list):
        return np.concatenate([leaves(inner) for inner in value]) if value else np.empty(0)
    return np.asarray(value).reshape(-1)


def document_values(column: pa.ChunkedArray, shape: Shape) -> Sequence[Any]:
    """A column document by document, without making a Python object of every number."""
    array = column.combine_chunks()
    if not shape.rank:
        return array.to_numpy(zero_copy_only=False)
    return _nested(array, shape.axes)


def _nested(array: pa.Array, axes: Sequence[int | None]) -> list[Any]:
    array = _storage(array)
    if pa.types.is_struct(array.type):
        return [decode_picture(content) for content in array.field("bytes").to_pylist()]
    inner = _storage(array.flatten())
    if pa.types.is_fixed_size_list(array.type):
        bounds = np.arange(len(array) + 1) * array.type.list_size
    else:
        bounds = array.offsets.to_numpy()
        bounds = bounds - bounds[0]
    pairs = pairwise(bounds.tolist())
    below = axes[1:]
    if None in below:
        lists = _nested(inner, below)
        return [lists[start:end] for start, end in pairs]
    while pa.types.is_nested(inner.type):
        inner = _storage(inner.flatten())
    flat = inner.to_numpy(zero_copy_only=False).reshape(-1, *below)
    return [flat[start:end] for start, end in pairs]


def _storage(array: pa.Array) -> pa.Array:
    """The lists of an Array2D to Array5D; any other array itself."""
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def document_lengths(dataset: datasets.Dataset, prefix: str) -> Rows:
    """int64[documents]: number of values in each document's main feature, 1 each where there is no sequence."""
    name = main_feature(model_shapes(dataset.features, prefix))
    if name is None or not len(dataset):
        return np.ones(len(dataset), dtype=np.int64)
    column = dataset.with_format("arrow")[prefix + name]
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return np.concatenate([_leaf_counts(chunk) for chunk in chunks])


def _leaf_counts(array: pa.Array) -> Rows:
    """Leaves below each list of `array`, through all levels of nesting."""
    array = _storage(array)
    if not pa.types.is_nested(array.type):
        return np.ones(len(array), dtype=np.int64)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    below = _leaf_counts(array.flatten())
    ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(below)])
    bounds = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    return ends[bounds[1:]] - ends[bounds[:-1]]


def longest_axes(data: datasets.Dataset, column: str, axes: tuple[int | None, ...]) -> list[int]:
    """The greatest length of every axis of a column. The pictures of one are all decoded for it."""
    values = data.with_format("arrow")[column]
    chunks = (values.chunks or [values.combine_chunks()]) if isinstance(values, pa.ChunkedArray) else [values]
    return [max(lengths) for lengths in zip(*(_longest(chunk, axes) for chunk in chunks), strict=True)]


def _longest(array: pa.Array, axes: tuple[int | None, ...]) -> list[int]:
    result: list[int] = []
    for fixed in axes:
        array = _storage(array)
        if pa.types.is_struct(array.type):
            sizes = (decode_picture(content.as_py()).shape for content in array.field("bytes"))
            return [*result, *map(max, zip((3, 0, 0), *sizes, strict=True))]
        if fixed is not None:
            result.append(fixed)
        else:
            result.append(int(pc.max(pc.list_value_length(array)).as_py() or 0))
        array = array.flatten()
    return result


T = TypeVar("T")
GROUPED_BATCHES = (
    50  # global batches whose documents are sorted by length together: enough to pad little, few enough to mix
)


def global_batches(lengths: Rows, size: int, seed: int, epoch: int) -> list[Rows]:
    """The optimizer steps of one epoch: every document once, `size` a step, the remainder in the last step.

    A remainder below half of `size` shares the documents of the last whole batch evenly: batch normalization cannot do with one
    document, and a step on very few is a noisy one. A random order is cut into groups of GROUPED_BATCHES batches; within a group documents are sorted by length (ties in random
    order), so that the batches cut from it pad little; then the batches are shuffled.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    group = size * max(1, min(GROUPED_BATCHES, len(order) // (4 * size)))
    batches: list[Rows] = []
    for start in range(0, len(order), group):
        rows = order[start : start + group]
        # Longest first within the group: the remainder, which has fewer documents, then holds the shortest.
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        batches += [rows[first : first + size] for first in range(0, len(rows), size)]
    whole, rest = batches[: len(order) // size], batches[len(order) // size :]
    if whole and rest and 2 * len(rest[0]) < size:
        shared = np.concatenate([whole[-1], rest[0]])
        whole[-1], rest = shared[: -(-len(shared) // 2)], [shared[-(-len(shared) // 2) :]]
    return [whole[index] for index in random.permutation(len(whole))] + rest


def micro_batches(batch: Rows, size: int, processes: int) -> list[list[Rows]]:
    """A global batch as `[process][micro-batch] -> rows`: equally many micro-batches for every process, of at most `size` rows.

    Neighbours in length share a micro-batch, and at any time all processes work on similar lengths. None has a single row, which
    batch normalization cannot do with, unless there is no other or `size` is 1: rather one has `size` + 1, or some are empty. The
    process of an empty one takes part with weight 0.
    """
    count = -(-len(batch) // size)
    count = -(-count // processes) * processes
    if size > 1 and len(batch) < 2 * count:
        cuts = np.array_split(batch, max(1, len(batch) // 2))
        cuts += [batch[:0]] * (-len(cuts) % processes)
    else:
        cuts = np.array_split(batch, count)
    return [cuts[process::processes] for process in range(processes)]


def evaluation_batches(lengths: Rows, size: int, processes: int) -> list[list[Rows]]:
    """All documents once, longest first, as `[process][round] -> rows`; equally many rounds for every process.

    What shares a batch does not depend on the number of processes. The rows of a round may be empty.
    """
    order = np.argsort(-lengths, kind="stable")
    cuts = [order[start : start + size] for start in range(0, len(order), size)]
    cuts += [order[:0]] * (-len(cuts) % processes)
    return [cuts[process::processes] for process in range(processes)]


def ahead(function: Callable[[Rows], T], items: Iterable[Rows]) -> Iterator[T]:
    """`map(function, items)`, the next two computed in a thread while the caller works on the last one."""
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[T]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
