"""What the baseline knows of encoded documents: how often terms occur in them or, where no feature is a token list, pooled values.

Terms are token ids and pairs of neighbouring ones; beyond a million of them they share buckets by hash. Values are those of all other
features (images, embeddings, single numbers), each document's averaged to a few: over axes on which documents differ in length, and over
equal stretches of the axes that all share. Pictures that are stored as files are made equally small first.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from docml_contract.names import SPLITS
from docml_trainer.data.datasets import document_values
from docml_trainer.data.shapes import ARTIFACT_GUID, LABELS, OWN_COLUMNS, Shape, shape_of

MAX_TERMS = 2**20
MAX_VALUES = 1024  # pooled values of a document
TOKENS_AT_ONCE = 1_000_000  # more take longer, since a processor keeps fewer of them near
DOCUMENTS_AT_ONCE = 64  # that are pooled: images are large
ID_BITS = 20  # of a token's number in the code of a term; with 22 bits for a document's, a code fits into 64
DOCUMENTS_COUNTED = 2**22  # at most, at once
MIXER = np.uint64(0xBF58476D1CE4E5B9)

Ids = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Inputs: TypeAlias = sparse.csr_array | Floats  # [documents, terms] of counts, or [documents, values]


@dataclass(frozen=True)
class EncodedDocuments:
    """Every document of the prepared data, split by split: tokens are joined, `ends` int64[documents] says where each one's end.

    values: float64[documents, values], the pooled values of data without tokens; None where there are tokens.
    """

    guids: list[str]
    labels: Ids
    splits: list[str]
    tokens: Ids
    ends: Ids
    values: Floats | None = None


def count_terms(tokens: Ids, ends: Ids) -> tuple[sparse.csr_array, bool]:
    """float32[documents, terms] of how often each token and each pair of neighbours occurs, and whether terms share buckets by hash."""
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= 2**ID_BITS):
        tokens = np.unique(tokens, return_inverse=True)[1]
    terms: Codes | None = np.zeros(0, dtype=np.uint64)
    for codes, _, _ in _codes(tokens, ends):
        terms = _distinct(np.concatenate([terms, _distinct(codes)]))
        if len(terms) > MAX_TERMS:
            terms = None
            break
    width = MAX_TERMS if terms is None else len(terms)
    parts = []
    for codes, owners, documents in _codes(tokens, ends):
        # Sorted as one number, a term's document beside its code, the same ones are neighbours; numpy sorts numbers ten times sooner than it
        # finds the distinct ones
        bits = np.uint64(documents.bit_length())
        cells = np.sort(((bucket_of(codes) if terms is None else codes) << bits) | owners)
        starts = _run_starts(cells)
        counts, cells = np.diff(starts, append=len(cells)).astype(np.float32), cells[starts]
        columns = cells >> bits
        if terms is not None:
            starts = _run_starts(columns)
            columns = np.repeat(np.searchsorted(terms, columns[starts]), np.diff(starts, append=len(columns)))
        places = ((cells & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int32), columns.astype(np.int32))
        parts.append(sparse.coo_array((counts, places), shape=(documents, width)).tocsr())
    return sparse.vstack(parts, format="csr"), terms is None


def bucket_of(codes: Codes) -> Codes:
    """Where the counts of terms lie that share buckets."""
    return (codes * MIXER >> np.uint64(32)) % np.uint64(MAX_TERMS)


def _codes(tokens: Ids, ends: Ids) -> Iterator[tuple[Codes, Codes, int]]:
    """The terms of the documents, a part of the documents at a time: uint64[terms], uint64[terms], the document of each, and how many there are.

    A token's code is its number, a pair's the numbers of both, the first one plus one.
    """
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    first = 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, starts[first] + TOKENS_AT_ONCE, side="right")))
        last = min(last, first + DOCUMENTS_COUNTED)
        part = tokens[starts[first] : ends[last - 1]].astype(np.uint64)
        owners = np.repeat(np.arange(last - first, dtype=np.uint64), ends[first:last] - starts[first:last])
        inside = owners[1:] == owners[:-1]
        pairs = ((part[:-1] + np.uint64(1)) << np.uint64(ID_BITS)) + part[1:]
        yield np.concatenate([part, pairs[inside]]), np.concatenate([owners, owners[1:][inside]]), last - first
        first = last


def _distinct(codes: Codes) -> Codes:
    """Ascending."""
    ordered = np.sort(codes)
    return ordered[_run_starts(ordered)]


def _run_starts(ordered: Codes) -> Ids:
    """Where a value differs from the one before it."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(ordered)), dtype=bool), ordered[1:] != ordered[:-1]]))


def read_encoded(output: Path, feature: str | None) -> tuple[EncodedDocuments, str] | str:
    """The documents of the splits below `output`, and the columns that were read; or why there is nothing to read.

    feature: the column of token ids; None pools what there is besides ids and masks.
    """
    found = {
        split: datasets.load_from_disk(str(output / split)) for split in SPLITS if any((output / split).glob("*.arrow"))
    }
    columns = [feature] if feature else _poolable(next(iter(found.values())).features)
    if not columns:
        return "no feature is a list of token ids, and besides ids and masks there is none"
    guids: list[str] = []
    splits: list[str] = []
    labels, read = [], []
    for split, data in found.items():
        table = data.select_columns([ARTIFACT_GUID, LABELS]).with_format("arrow")[:]
        guids += table[ARTIFACT_GUID].to_pylist()
        splits += [split] * table.num_rows
        labels.append(table[LABELS].to_numpy())
        read.append(_read_tokens(data, feature) if feature else (_pool(data, columns), np.zeros(len(data), np.int64)))
    first, lengths = (np.concatenate(parts) for parts in zip(*read, strict=True))
    tokens, values = (first, None) if feature else (np.zeros(0, dtype=np.int64), first)
    joined = np.concatenate(labels).astype(np.int64)
    return EncodedDocuments(guids, joined, splits, tokens, np.cumsum(lengths), values), ", ".join(columns)


def _read_tokens(data: datasets.Dataset, feature: str) -> tuple[Ids, Ids]:
    """The tokens of all documents, joined, and int64[documents], how many each has."""
    column = data.select_columns([feature]).with_format("arrow")[:][feature].combine_chunks()
    owner, documents = np.arange(len(column)), len(column)
    while pa.types.is_nested(column.type):
        owner = owner[pc.list_parent_indices(column).to_numpy()]
        column = column.flatten()
    tokens = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return tokens, np.bincount(owner, minlength=documents)


def _poolable(features: Mapping[str, object]) -> list[str]:
    """The columns whose values mean something by their size: no ids and no masks."""
    return [name for name in features if name not in OWN_COLUMNS and not name.endswith(("_ids", "_mask"))]


def _pool(data: datasets.Dataset, columns: Sequence[str]) -> Floats:
    """float64[documents, values] of these columns, one after the other."""
    shapes = [shape_of(name, data.features[name]) for name in columns]
    read = data.select_columns(list(columns)).with_format("arrow")
    parts = []
    for start in range(0, len(data), DOCUMENTS_AT_ONCE):
        table = read[start : start + DOCUMENTS_AT_ONCE]
        pooled = (
            pool_pictures(document_values(table[name], shape), MAX_VALUES // len(columns))
            if shape.is_picture
            else pool_values(table[name].combine_chunks(), shape, MAX_VALUES // len(columns))
            for name, shape in zip(columns, shapes, strict=True)
        )
        parts.append(np.concatenate([*pooled], axis=1))
    return np.concatenate(parts)


def pool_values(column: pa.Array, shape: Shape, most: int) -> Floats:
    """float64[documents, at most `most`]: a mean over axes of any length (0 over nothing), and over stretches of fixed ones.

    The longest of these is halved until few enough values are left: an image of 3 x 224 x 224 becomes 3 x 14 x 14 at 1,024.
    """
    kept = {axis: length for axis, length in enumerate(shape.axes) if length is not None}
    while np.prod([*kept.values()]) > most:
        longest = max(kept, key=lambda axis: kept[axis])
        kept[longest] = -(-kept[longest] // 2)
    lengths = []
    for _ in shape.axes:
        if isinstance(column, pa.ExtensionArray):  # datasets.Array2D and its like
            column = column.storage
        lengths.append(pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64))
        column = column.flatten()
    values = column.to_numpy(zero_copy_only=False).astype(np.float64)
    for axis in reversed(range(shape.rank)):
        if axis in kept:
            values = values.reshape(-1, shape.axes[axis], *values.shape[1:])
            values = np.stack([part.mean(axis=1) for part in np.array_split(values, kept[axis], axis=1)], axis=1)
        else:
            values = _means(values, lengths[axis])
    return values.reshape(len(values), -1)


def pool_pictures(documents: Sequence[Any], most: int) -> Floats:
    """float64[documents, at most `most`] of each document's picture, or list of pictures: made equally small, and averaged (0 of none)."""
    from PIL import Image

    side = max(1, math.isqrt(most // 3))
    values = np.zeros((len(documents), side * side * 3))
    for row, own in zip(values, documents, strict=True):
        for page in own if isinstance(own, list) else [own]:
            image = Image.fromarray(page.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BOX)
            row += np.asarray(image).reshape(-1) / (len(own) if isinstance(own, list) else 1)
    return values


def _means(values: Floats, lengths: Ids) -> Floats:
    """The mean of every `lengths` rows, one group after the other; 0 of no rows."""
    found = np.zeros((len(lengths), *values.shape[1:]))
    filled, starts = lengths > 0, np.cumsum(lengths) - lengths
    if filled.any():
        sums = np.add.reduceat(values, starts[filled], axis=0)
        found[filled] = sums / lengths[filled].reshape(-1, *[1] * (values.ndim - 1))
    return found


def transpose(inputs: Inputs) -> Inputs:
    """The same by terms or values, ready to be multiplied with."""
    return inputs.T if isinstance(inputs, np.ndarray) else inputs.T.tocsr()


def dense(product: Inputs) -> Floats:
    """A product of two of them as an array."""
    return product if isinstance(product, np.ndarray) else product.toarray()
