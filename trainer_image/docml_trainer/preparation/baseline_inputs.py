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
from sklearn.preprocessing import normalize

from docml_contract.names import SPLITS
from docml_trainer.data.datasets import document_values
from docml_trainer.data.shapes import ARTIFACT_GUID, LABELS, OWN_COLUMNS, Shape, shape_of

MAX_TERMS = 2**20
MOST_KEPT = 2**25  # tokens of documents whose counts are all kept: 0.4 GB
COUNTED_AT_ONCE = 10_000  # documents, where all are counted once more
MAX_VALUES = 1024  # pooled values of a document
TOKENS_AT_ONCE = 1_000_000  # more take longer, since a processor keeps fewer of them near
DOCUMENTS_AT_ONCE = 64  # that are pooled: images are large
ID_BITS = 20  # of a token's number in the code of a term; with 22 bits for a document's, a code fits into 64
DOCUMENTS_COUNTED = 2**22  # at most, at once
MIXER = np.uint64(0xBF58476D1CE4E5B9)

Ids = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Rows: TypeAlias = sparse.csr_array | Floats  # [rows, terms] or [rows, values]
Inputs: TypeAlias = "TermCounts | Floats"  # of all documents: counts of terms, or values


@dataclass(frozen=True)
class EncodedDocuments:
    """Every document of the prepared data, split by split: tokens are joined, `ends` int64[documents] says where each one's end.

    values: float64[documents, values], the pooled values of data without tokens; None where there are tokens.
    """

    guids: list[str]
    labels: Ids
    splits: list[str]
    tokens: npt.NDArray[np.integer[Any]]
    ends: Ids
    values: Floats | None = None


class TermCounts:
    """How often each token and each pair of neighbours occurs in documents: `counts[rows]` is a float32[rows, terms].

    hashed: whether terms share buckets. Counts of some documents are kept, those of others found anew whenever they are asked for: of 100
    million tokens they would take 1.2 GB. tokens: all documents', joined; ends: int64[documents], where each one's end.
    """

    def __init__(self, tokens: npt.NDArray[np.integer[Any]], ends: Ids) -> None:
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= 2**ID_BITS):
            tokens = np.unique(tokens, return_inverse=True)[1]
        self._tokens, self._ends = tokens, ends
        self._lengths = np.diff(ends, prepend=0)
        terms: Codes | None = np.zeros(0, dtype=np.uint64)
        for codes, _, _ in self._codes(np.arange(len(ends))):
            terms = _distinct(np.concatenate([terms, _distinct(codes)]))
            if len(terms) > MAX_TERMS:
                terms = None
                break
        self._terms = terms
        self.hashed = terms is None
        self.shape = (len(ends), MAX_TERMS if terms is None else len(terms))
        self._places = np.full(len(ends), -1)
        self._kept = self._count(np.arange(0))

    def keep(self, rows: Ids) -> "TermCounts":
        """Keep the counts of these documents, or of all where that takes little memory."""
        rows = np.arange(len(self._ends)) if len(self._tokens) <= MOST_KEPT else rows
        self._kept = self._count(rows)
        self._places[rows] = np.arange(len(rows))
        return self

    def __getitem__(self, rows: Ids) -> sparse.csr_array:
        places = self._places[rows]
        return self._kept[places] if (places >= 0).all() else self._count(rows)

    def spread(self) -> Ids:
        """int64[terms]: how many of all documents have each term."""
        found = np.zeros(self.shape[1], dtype=np.int64)
        for start in range(0, self.shape[0], COUNTED_AT_ONCE):
            part = self[np.arange(start, min(start + COUNTED_AT_ONCE, self.shape[0]))]
            found += np.bincount(part.indices, minlength=self.shape[1])
        return found

    def _count(self, rows: Ids) -> sparse.csr_array:
        # A document has at most twice as many terms as tokens; memory that is not written to is not taken
        most, at = 2 * int(self._lengths[rows].sum()), 0
        counts, columns, ends = (
            np.empty(most, dtype=np.float32),
            np.empty(most, dtype=np.int32),
            [np.zeros(1, np.int64)],
        )
        for codes, owners, documents in self._codes(rows):
            part = _count_codes(codes, owners, documents, self._terms)
            counts[at : at + part.nnz], columns[at : at + part.nnz] = part.data, part.indices
            ends.append(at + part.indptr[1:].astype(np.int64))
            at += part.nnz
        starts = np.concatenate(ends).astype(np.int32 if at < 2**31 else np.int64)
        return sparse.csr_array((counts[:at], columns[:at], starts), shape=(len(rows), self.shape[1]))

    def _codes(self, rows: Ids) -> Iterator[tuple[Codes, Codes, int]]:
        """What `code_terms` says of these documents, a part of them at a time, and how many there are."""
        lengths = self._lengths[rows]
        before = np.concatenate([[0], np.cumsum(lengths)])
        first = 0
        while first < len(rows):
            last = max(first + 1, int(np.searchsorted(before, before[first] + TOKENS_AT_ONCE, side="right")) - 1)
            last = min(last, first + DOCUMENTS_COUNTED)
            ends = self._ends[rows[first:last]].tolist()
            pairs = zip(ends, lengths[first:last].tolist(), strict=True)
            yield *code_terms([self._tokens[end - length : end] for end, length in pairs]), last - first
            first = last


class WeightedTerms:
    """TF-IDF of documents, weights of all of them: `weighted[rows]` is a float32[rows, terms], rows of unit length.

    As scikit-learn's TfidfTransformer(sublinear_tf=True) has it, whose copies of everything would take several GB where documents are many.
    """

    def __init__(self, counts: TermCounts) -> None:
        self._counts = counts
        self._idf = (np.log((1 + counts.shape[0]) / (1 + counts.spread())) + 1).astype(np.float32)

    def __getitem__(self, rows: Ids) -> sparse.csr_array:
        found = self._counts[rows]
        np.log(found.data, out=found.data)
        found.data += 1
        found.data *= self._idf[found.indices]
        return normalize(found, copy=False) if len(rows) else found


def code_terms(documents: Sequence[npt.NDArray[np.integer[Any]]]) -> tuple[Codes, Codes]:
    """The terms of documents given as token ids: uint64[terms], and the document of each, uint64[terms].

    A token's code is its number, a pair's the numbers of both, the first one plus one.
    """
    joined = np.concatenate(documents).astype(np.uint64)
    owners = np.repeat(np.arange(len(documents), dtype=np.uint64), [len(tokens) for tokens in documents])
    inside = owners[1:] == owners[:-1]
    pairs = ((joined[:-1] + np.uint64(1)) << np.uint64(ID_BITS)) + joined[1:]
    return np.concatenate([joined, pairs[inside]]), np.concatenate([owners, owners[1:][inside]])


def _count_codes(codes: Codes, owners: Codes, documents: int, terms: Codes | None) -> sparse.csr_array:
    """float32[documents, terms]; terms: their codes, ascending, None where they share buckets."""
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
    width = MAX_TERMS if terms is None else len(terms)
    return sparse.coo_array((counts, places), shape=(documents, width)).tocsr()


def bucket_of(codes: Codes) -> Codes:
    """Where the counts of terms lie that share buckets."""
    return (codes * MIXER >> np.uint64(32)) % np.uint64(MAX_TERMS)


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
    tokens, values = (first, None) if feature else (np.zeros(0, dtype=np.int32), first)
    joined = np.concatenate(labels).astype(np.int64)
    return EncodedDocuments(guids, joined, splits, tokens, np.cumsum(lengths), values), ", ".join(columns)


def _read_tokens(data: datasets.Dataset, feature: str) -> tuple[npt.NDArray[np.integer[Any]], Ids]:
    """The tokens of all documents, joined, and int64[documents], how many each has."""
    column = data.select_columns([feature]).with_format("arrow")[:][feature].combine_chunks()
    owner, documents = np.arange(len(column)), len(column)
    while pa.types.is_nested(column.type):
        owner = owner[pc.list_parent_indices(column).to_numpy()]
        column = column.flatten()
    tokens = column.to_numpy(zero_copy_only=False)
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


def transpose(rows: Rows) -> Rows:
    """The same by terms or values, ready to be multiplied with."""
    return rows.T if isinstance(rows, np.ndarray) else rows.T.tocsr()


def dense(product: Rows) -> Floats:
    """A product of two of them as an array."""
    return product if isinstance(product, np.ndarray) else product.toarray()
