"""The baseline that every model of a run is judged beside: TF-IDF over token ids, and logistic regression.

It is fitted on the train split of the data just prepared. Its answers about train documents come out of fold (five folds, which no
group and no near-duplicates straddle), those about valid and test documents from the fit on train. Terms are the ids of one feature
and pairs of neighbouring ids, in at least two of the documents that a fit sees; beyond a million of them they share buckets by hash.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse, stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from threadpoolctl import threadpool_limits

from docml_contract.names import SPLITS
from docml_trainer.data.shapes import ARTIFACT_GUID, LABELS
from docml_trainer.preparation.documents import order_key
from docml_trainer.preparation.splits import SplitAssignment, blocks_of

MAX_FITTED = 50_000  # documents; a stratified sample of more
MAX_CHOOSING = 2_000  # documents by which the regularization is chosen
MAX_ROTATED = 2_000  # documents up to which a fit in the space that they span is the quicker one
RANK_TOLERANCE = 1e-12
MAX_TERMS = 2**20
FOLDS = 5
STRENGTHS = (1.0, 10.0, 100.0)  # C of scikit-learn: the inverse of the penalty's weight
MAX_ITERATIONS = 500
TOKENS_AT_ONCE = 4_000_000
PAIR, MIXER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EncodedDocuments:
    """Every document of the prepared data, split by split: tokens are joined, `ends` int64[documents] says where each one's end."""

    guids: list[str]
    labels: Ids
    splits: list[str]
    tokens: Ids
    ends: Ids


@dataclass(frozen=True)
class Baseline:
    """baseline.parquet, what split_metadata.json says of it, and what it was made of.

    probabilities: float32[documents, labels], each document's from a fit that had not seen it. counts: as `count_terms` gives them.
    fitted: int64[n], the documents of the train split that it was fitted on.
    """

    table: pa.Table
    facts: dict[str, Any]
    documents: EncodedDocuments
    probabilities: Probabilities
    counts: sparse.csr_array
    fitted: Ids

    @cached_property
    def weighted(self) -> sparse.csr_array:
        """float64[documents, terms], TF-IDF of all documents, rows of unit length: by its cosine documents are similar."""
        return TfidfTransformer(sublinear_tf=True).fit_transform(self.counts)

    @property
    def chance(self) -> str | None:
        """Why its answers say nothing of the labels; None where they do.

        They do if out of fold it is right more often than the share of the most frequent label would let one answer be (one-sided
        binomial test, 5 %).
        """
        truth = self.documents.labels[self.fitted]
        right = int((self.probabilities[self.fitted].argmax(axis=1) == truth).sum())
        most = np.bincount(truth).max() / len(truth)
        if stats.binomtest(right, len(truth), most, alternative="greater").pvalue < 0.05:
            return None
        return (
            f"the baseline is no better than chance: out of fold it labels {right / len(truth):.1%} of the train documents correctly, and "
            f"saying the most frequent label always would {most:.1%}"
        )


def fit_baseline(
    output: Path, feature: str | None, assignment: SplitAssignment, label_names: Sequence[str]
) -> Baseline | str:
    """Fit it on the splits below `output`; where that is impossible, the reason.

    feature: the column of token ids, None if the data have none. assignment: which documents belong together.
    """
    started = time.monotonic()
    if feature is None:
        return "no feature is a list of token ids"
    documents = _read(output, feature)
    block_of = {assignment.guids[row]: number for number, block in enumerate(blocks_of(assignment)) for row in block}
    made = fit_documents(documents, np.array([block_of[guid] for guid in documents.guids]), label_names)
    if isinstance(made, str):
        return made
    return replace(made, facts={"feature": feature, **made.facts, "seconds": round(time.monotonic() - started, 3)})


def fit_documents(documents: EncodedDocuments, blocks: Ids, label_names: Sequence[str]) -> Baseline | str:
    """Fit it on these documents; where that is impossible, the reason. blocks: int64[documents], equal where documents belong together."""
    train = np.array([split == "train" for split in documents.splits])
    fitted = _sample(np.flatnonzero(train), documents, MAX_FITTED)
    if len(np.unique(documents.labels[fitted])) < 2:
        return "the train split has one label only"
    folds = _folds(blocks, fitted, documents)
    if folds.max() < 1:
        return "all documents of the train split belong together, so none could be held out"
    counts, hashed = count_terms(documents.tokens, documents.ends)
    width = len(label_names)
    choosers = _sample(fitted, documents, MAX_CHOOSING)
    chosen, choosing = choose_strength(
        counts, documents.labels, choosers, folds[np.searchsorted(fitted, choosers)], width
    )
    probabilities = np.zeros((len(documents.guids), width), dtype=np.float32)
    held_out = (
        choosing
        if len(choosing) == len(fitted)
        else _out_of_fold(counts, documents.labels, fitted, folds, chosen, width)
    )
    probabilities[fitted] = held_out
    others = np.setdiff1d(np.arange(len(documents.guids)), fitted)
    probabilities[others], terms = answer(counts, documents.labels, fitted, others, chosen, width)
    facts = {
        "documents": len(fitted),
        "of_train_documents": int(train.sum()),
        "terms": terms,
        "hashed": hashed,
        "C": chosen,
        "macro_f1": _macro_f1(documents, probabilities),
    }
    return Baseline(_table(documents, probabilities, label_names), facts, documents, probabilities, counts, fitted)


def count_terms(tokens: Ids, ends: Ids) -> tuple[sparse.csr_array, bool]:
    """float64[documents, terms] of how often each token and each pair of neighbours occurs, and whether terms share buckets by hash."""
    terms: npt.NDArray[np.uint64] | None = np.zeros(0, dtype=np.uint64)
    for codes, _ in _codes(tokens, ends):
        if terms is not None:
            terms = np.union1d(terms, codes)
            terms = terms if len(terms) <= MAX_TERMS else None
    rows, columns, counted = [], [], []
    width = MAX_TERMS if terms is None else len(terms)
    for codes, documents in _codes(tokens, ends):
        place = (
            (codes * MIXER >> np.uint64(32)) % np.uint64(MAX_TERMS) if terms is None else np.searchsorted(terms, codes)
        )
        cells, number = np.unique(documents * width + place.astype(np.int64), return_counts=True)
        rows.append(cells // width)
        columns.append(cells % width)
        counted.append(number)
    shape = (len(ends), width)
    values = np.concatenate(counted).astype(np.float64)
    return sparse.csr_array((values, (np.concatenate(rows), np.concatenate(columns))), shape=shape), terms is None


def _codes(tokens: Ids, ends: Ids) -> Iterator[tuple[npt.NDArray[np.uint64], Ids]]:
    """The terms of the documents, a part of the documents at a time: uint64[terms], and int64[terms], the document of each."""
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    first = 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, starts[first] + TOKENS_AT_ONCE, side="right")))
        part = tokens[starts[first] : ends[last - 1]].astype(np.uint64)
        document = np.repeat(np.arange(first, last), ends[first:last] - starts[first:last])
        inside = document[1:] == document[:-1]
        # A pair's code is far from every token id: ids are small, and the factor spreads pairs over all 64 bits.
        pairs = (part[:-1] + np.uint64(1)) * PAIR + part[1:]
        yield np.concatenate([part, pairs[inside]]), np.concatenate([document, document[1:][inside]])
        first = last


def _read(output: Path, feature: str) -> EncodedDocuments:
    guids: list[str] = []
    splits: list[str] = []
    labels, tokens, lengths = [], [], []
    for split in SPLITS:
        if not any((output / split).glob("*.arrow")):
            continue
        table = datasets.load_from_disk(str(output / split)).with_format("arrow")[:]
        guids += table[ARTIFACT_GUID].to_pylist()
        splits += [split] * table.num_rows
        labels.append(table[LABELS].to_numpy())
        column = table[feature].combine_chunks()
        owner = np.arange(len(column))
        while pa.types.is_nested(column.type):
            owner = owner[pc.list_parent_indices(column).to_numpy()]
            column = column.flatten()
        lengths.append(np.bincount(owner, minlength=table.num_rows))
        tokens.append(column.to_numpy(zero_copy_only=False).astype(np.int64))
    return EncodedDocuments(
        guids,
        np.concatenate(labels).astype(np.int64),
        splits,
        np.concatenate(tokens),
        np.cumsum(np.concatenate(lengths)),
    )


def _sample(rows: Ids, documents: EncodedDocuments, most: int) -> Ids:
    """At most `most` of the rows, stratified by label, in an order that depends on the GUIDs alone."""
    if len(rows) <= most:
        return rows
    rank: dict[int, int] = {}
    keyed = []
    for row in sorted(rows.tolist(), key=lambda row: order_key(documents.guids[row])):
        label = int(documents.labels[row])
        rank[label] = rank.get(label, 0) + 1
        keyed.append((rank[label], label, row))
    keyed.sort(key=lambda entry: (entry[0] / rank[entry[1]], entry[1]))
    return np.array(sorted(row for _, _, row in keyed[:most]))


def _folds(blocks: Ids, fitted: Ids, documents: EncodedDocuments) -> Ids:
    """int64[fitted]: each document's fold. Units are dealt out label by label, so that every fold has about every label's share."""
    members: dict[int, list[int]] = {}
    for place, row in enumerate(fitted.tolist()):
        members.setdefault(int(blocks[row]), []).append(place)

    def order(block: int) -> tuple[int, bytes]:
        labels = documents.labels[fitted[members[block]]]
        return int(np.bincount(labels).argmax()), min(
            order_key(documents.guids[fitted[place]]) for place in members[block]
        )

    folds = np.zeros(len(fitted), dtype=np.int64)
    number = min(FOLDS, len(members))
    for position, block in enumerate(sorted(members, key=order)):
        folds[members[block]] = position % number
    return folds


def choose_strength(
    counts: sparse.csr_array, labels: Ids, rows: Ids, folds: Ids, width: int
) -> tuple[float, Probabilities]:
    """The strength with the lowest log loss out of fold on these rows, and its answers about them. folds: int64[rows]."""
    found = {c: _out_of_fold(counts, labels, rows, folds, c, width) for c in STRENGTHS}
    losses = {c: log_loss(labels[rows], values, labels=range(width)) for c, values in found.items()}
    best = min(STRENGTHS, key=lambda c: losses[c])
    return best, found[best]


def _out_of_fold(
    counts: sparse.csr_array, labels: Ids, rows: Ids, folds: Ids, strength: float, width: int
) -> Probabilities:
    found = np.zeros((len(rows), width), dtype=np.float32)
    for fold in np.unique(folds):
        inside = folds == fold
        found[inside], _ = answer(counts, labels, rows[~inside], rows[inside], strength, width)
    return found


def answer(
    counts: sparse.csr_array, labels: Ids, fit: Ids, asked: Ids, strength: float, width: int
) -> tuple[Probabilities, int]:
    """float32[asked, width]: probabilities of a model fitted on the rows `fit`; and how many terms it knows."""
    found = np.zeros((len(asked), width), dtype=np.float32)
    known = np.unique(labels[fit])
    if len(known) == 1:
        found[:, known[0]] = 1
        return found, 0
    own = counts[fit]
    spread = own.count_nonzero(axis=0)
    columns = np.flatnonzero(spread >= 2)
    columns = columns if len(columns) else np.flatnonzero(spread)
    weights = TfidfTransformer(sublinear_tf=True).fit(own[:, columns])
    known_values, asked_values = (weights.transform(counts[rows][:, columns]) for rows in (fit, asked))
    model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
    # One thread: several wait for each other for longer than they help, and their number would show in the last digits.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # as good as it is after so many iterations
        if len(fit) <= MAX_ROTATED:
            known_values, asked_values = _rotate(known_values, asked_values)
        model.fit(known_values, labels[fit])
    if len(asked):
        found[:, model.classes_] = model.predict_proba(asked_values)
    return found, len(columns)


def _rotate(fit: sparse.csr_array, asked: sparse.csr_array) -> tuple[Floats, Floats]:
    """float64[fit, rank] and float64[asked, rank]: the same documents in coordinates of the space that the fitted ones span.

    The weights of a regression with an L2 penalty lie in that space, and neither its loss nor the steps of L-BFGS depend on the axes.
    What does is when it stops, by the gradient's largest element: answers are the same within its tolerance (about .01 at C = 100).
    With few documents and many terms they come ten times sooner.
    """
    values, vectors = np.linalg.eigh((fit @ fit.T).toarray())
    kept = values > values[-1] * RANK_TOLERANCE
    lengths = np.sqrt(values[kept])
    return vectors[:, kept] * lengths, (asked @ fit.T).toarray() @ (vectors[:, kept] / lengths)


def _macro_f1(documents: EncodedDocuments, probabilities: Probabilities) -> dict[str, float | None]:
    """By split, over the labels that its documents have; train is out of fold."""
    predicted = probabilities.argmax(axis=1)
    scores: dict[str, float | None] = {}
    for split in SPLITS:
        inside = np.array([name == split for name in documents.splits])
        truth = documents.labels[inside]
        score = (
            f1_score(truth, predicted[inside], labels=np.unique(truth), average="macro", zero_division=0)
            if len(truth)
            else None
        )
        scores[split] = None if score is None else round(float(score), 6)
    return scores


def _table(documents: EncodedDocuments, probabilities: Probabilities, label_names: Sequence[str]) -> pa.Table:
    """One row a document: artifact_guid, label, split, prediction, probability of it, probabilities in the order of the labels' ids."""
    names = np.array(label_names, dtype=object)
    predicted = probabilities.argmax(axis=1)
    return pa.table(
        {
            "artifact_guid": pa.array(documents.guids, pa.string()),
            "label": pa.array(names[documents.labels], pa.string()),
            "split": pa.array(documents.splits, pa.string()),
            "prediction": pa.array(names[predicted], pa.string()),
            "probability": pa.array(probabilities[np.arange(len(predicted)), predicted], pa.float32()),
            "probabilities": pa.array(list(probabilities), pa.list_(pa.float32())),
        }
    ).sort_by("artifact_guid")
