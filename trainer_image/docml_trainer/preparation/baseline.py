"""The baseline that every model of a run is judged beside: TF-IDF over token ids, and logistic regression.

It is fitted on the train split of the data just prepared. Its answers about train documents come out of fold (five folds, which no
group and no near-duplicates straddle), those about valid and test documents from the fit on train. Of the terms those take part that at
least two of the documents have that a fit sees. Where no feature is a token list, standardized pooled values take the place of TF-IDF.

Few documents are fitted in the space that they span. Many are by stochastic average gradients (Schmidt, Le Roux and Bach, Minimizing finite
sums with the stochastic average gradient, Mathematical Programming 2017), in scikit-learn's implementation, which take a tenth of the time
of L-BFGS, since that moves all weights some ten times a step. Fits go on side by side: each takes one processor, and is the same wherever it runs.
"""

import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse, stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from sklearn.preprocessing import StandardScaler, normalize
from threadpoolctl import threadpool_limits

from docml_contract.names import SPLITS
from docml_trainer.preparation.baseline_inputs import (
    EncodedDocuments,
    Floats,
    Ids,
    Inputs,
    Rows,
    TermCounts,
    WeightedTerms,
    read_encoded,
)
from docml_trainer.preparation.documents import order_key
from docml_trainer.preparation.splits import SplitAssignment, blocks_of, deal_folds

MAX_FITTED = 50_000  # documents; a stratified sample of more
MAX_CHOOSING = 2_000  # documents by which the regularization is chosen
MAX_ROTATED = 1_000  # documents up to which a fit in the space that they span is the quicker one
MAX_WEIGHTS = 2**24  # of a model, one a term and label: 67 MB, of which a fit keeps five copies
FOLDS = 5
FITS_AT_ONCE = FOLDS + 1
FITTED_AT_ONCE = 100_000  # documents: a fit of 40,000 takes up to 0.7 GB
ASKED_AT_ONCE = 5_000
RANK_TOLERANCE = 1e-12
STRENGTHS = (1.0, 10.0, 100.0)  # C of scikit-learn: the inverse of the penalty's weight
MAX_ITERATIONS = 500

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Baseline:
    """baseline.parquet, what split_metadata.json says of it, and what it was made of.

    probabilities: float32[documents, labels], each document's from a fit that had not seen it. inputs: what it knows of the documents.
    fitted: int64[n], the documents of the train split that it was fitted on.
    """

    table: pa.Table
    facts: dict[str, Any]
    documents: EncodedDocuments
    probabilities: Probabilities
    inputs: Inputs
    fitted: Ids

    @cached_property
    def weighted(self) -> WeightedTerms | Floats:
        """TF-IDF or standardized values of all documents, rows of unit length: by its cosine documents are similar."""
        if isinstance(self.inputs, np.ndarray):
            return normalize(StandardScaler().fit_transform(self.inputs))
        return WeightedTerms(self.inputs)

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

    feature: the column of token ids; None if the data have none, which are then pooled. assignment: which documents belong together.
    """
    started = time.monotonic()
    read = read_encoded(output, feature)
    if isinstance(read, str):
        return read
    documents, columns = read
    block_of = {assignment.guids[row]: number for number, block in enumerate(blocks_of(assignment)) for row in block}
    made = fit_documents(documents, np.array([block_of[guid] for guid in documents.guids]), label_names)
    if isinstance(made, str):
        return made
    return replace(made, facts={"feature": columns, **made.facts, "seconds": round(time.monotonic() - started, 3)})


def fit_documents(documents: EncodedDocuments, blocks: Ids, label_names: Sequence[str]) -> Baseline | str:
    """Fit it on these documents; where that is impossible, the reason. blocks: int64[documents], equal where documents belong together."""
    train = np.array([split == "train" for split in documents.splits])
    fitted = _sample(np.flatnonzero(train), documents, MAX_FITTED)
    if len(np.unique(documents.labels[fitted])) < 2:
        return "the train split has one label only"
    folds = deal_folds(blocks[fitted], documents.labels[fitted], [documents.guids[row] for row in fitted], FOLDS)
    if folds.max() < 1:
        return "all documents of the train split belong together, so none could be held out"
    inputs: Inputs | None = documents.values
    hashed = False
    if inputs is None:
        inputs = TermCounts(documents.tokens, documents.ends).keep(fitted)
        hashed = inputs.hashed
    width = len(label_names)
    choosers = _sample(fitted, documents, MAX_CHOOSING)
    probabilities = np.zeros((len(documents.guids), width), dtype=np.float32)
    others = np.setdiff1d(np.arange(len(documents.guids)), fitted)
    last = (fitted, others)
    if len(choosers) == len(fitted):
        chosen, probabilities[fitted] = choose_strength(inputs, documents.labels, fitted, folds, width)
        (found,) = answer(inputs, documents.labels, [last], [chosen], width)
    else:
        own = folds[np.searchsorted(fitted, choosers)]
        chosen = _choose_by_sample(inputs, documents.labels, choosers, own, width)
        parts = [*_parts(fitted, folds), last]
        *by_fold, found = answer(inputs, documents.labels, parts, [chosen], width)
        for (_, inside), said in zip(parts, by_fold, strict=False):
            probabilities[inside] = said.probabilities[0]
    probabilities[others] = found.probabilities[0]
    facts = {
        "inputs": "terms" if documents.values is None else "pooled values",
        "documents": len(fitted),
        "of_train_documents": int(train.sum()),
        "terms": found.terms,
        "rarest": found.rarest,
        "hashed": hashed,
        "C": chosen,
        "macro_f1": _macro_f1(documents, probabilities),
    }
    return Baseline(_table(documents, probabilities, label_names), facts, documents, probabilities, inputs, fitted)


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


def choose_strength(inputs: Inputs, labels: Ids, rows: Ids, folds: Ids, width: int) -> tuple[float, Probabilities]:
    """The strength with the lowest log loss out of fold on these rows, and its answers about them. folds: int64[rows]."""
    found = [np.zeros((len(rows), width), dtype=np.float32) for _ in STRENGTHS]
    parts = _parts(rows, folds)
    for (_, inside), said in zip(parts, answer(inputs, labels, parts, STRENGTHS, width), strict=True):
        for values, answers in zip(found, said.probabilities, strict=True):
            values[np.searchsorted(rows, inside)] = answers
    best = _least_loss(labels[rows], found)
    return STRENGTHS[best], found[best]


def _choose_by_sample(inputs: Inputs, labels: Ids, rows: Ids, folds: Ids, width: int) -> float:
    """The same by one fold of a sample, whose answers nobody needs. folds: int64[rows]."""
    part = _parts(rows, folds)[0]
    (found,) = answer(inputs, labels, [part], STRENGTHS, width)
    return STRENGTHS[_least_loss(labels[part[1]], found.probabilities)]


def _parts(rows: Ids, folds: Ids) -> list[tuple[Ids, Ids]]:
    """Of each fold, the rows outside, which are fitted, and those inside, which are asked about. rows: ascending."""
    return [(rows[folds != fold], rows[folds == fold]) for fold in np.unique(folds)]


def _least_loss(truth: Ids, answers: Sequence[Probabilities]) -> int:
    """Which of these is best."""
    return int(np.argmin([log_loss(truth, values, labels=range(values.shape[1])) for values in answers]))


@dataclass(frozen=True)
class FoldAnswers:
    """What models say that were fitted on the same rows, one a strength: float32[asked, labels] of each.

    terms: how many terms or values they know. rarest: in how many of the rows a term had to be.
    """

    probabilities: list[Probabilities]
    terms: int = 0
    rarest: int = 0


def answer(
    inputs: Inputs, labels: Ids, parts: Sequence[tuple[Ids, Ids]], strengths: Sequence[float], width: int
) -> list[FoldAnswers]:
    """Of each part, rows that are fitted and rows that are asked about, what a model a strength says about the latter."""
    # Each fit has one thread: several wait for each other for longer than they help, and their number would show in the last digits.
    largest = max((len(fit) for fit, _ in parts), default=1)
    at_once = min(len(os.sched_getaffinity(0)), FITS_AT_ONCE, max(1, FITTED_AT_ONCE // largest))
    with warnings.catch_warnings(), threadpool_limits(1), ThreadPoolExecutor(at_once) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)  # as good as it is after so many iterations
        return list(pool.map(lambda part: _answers(inputs, labels, part[0], part[1], strengths, width), parts))


def _answers(inputs: Inputs, labels: Ids, fit: Ids, asked: Ids, strengths: Sequence[float], width: int) -> FoldAnswers:
    """The same of one part."""
    found = FoldAnswers([np.zeros((len(asked), width), dtype=np.float32) for _ in strengths])
    known = np.unique(labels[fit])
    if len(known) == 1:
        for values in found.probabilities:
            values[:, known[0]] = 1
        return found
    read, weigh, terms, rarest = _weigh(inputs, fit, len(known))
    if len(fit) <= MAX_ROTATED and sparse.issparse(read):
        read, weigh = _rotate(read, weigh)
    models = [regression(strength, len(fit), terms=sparse.issparse(read)) for strength in strengths]
    for model in models:
        model.fit(read, labels[fit])
    for start in range(0, len(asked), ASKED_AT_ONCE):
        part = slice(start, start + ASKED_AT_ONCE)
        read = weigh(asked[part])
        for values, model in zip(found.probabilities, models, strict=True):
            values[part, model.classes_] = model.predict_proba(read)
    return replace(found, terms=terms, rarest=rarest)


def regression(strength: float, documents: int, *, terms: bool) -> LogisticRegression:
    """What is fitted on so many documents: on terms, or on few values."""
    if documents > MAX_ROTATED and terms:
        return LogisticRegression(C=strength, solver="sag", tol=1e-2, max_iter=100, random_state=0)
    return LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=1e-4 if documents <= MAX_ROTATED else 1e-3)


def _weigh(inputs: Inputs, fit: Ids, labels: int) -> tuple[Rows, Callable[[Ids], Rows], int, int]:
    """What a model reads of the rows `fit`, which it is fitted on, what finds the same of other rows, how many terms or values that are, and
    `FoldAnswers.rarest`.

    labels: how many the rows `fit` have.
    """
    if isinstance(inputs, np.ndarray):
        scaler = StandardScaler().fit(inputs[fit])
        unit = inputs.shape[1] ** -0.5  # rows of about unit length, as those of TF-IDF: a strength means the same
        return (
            scaler.transform(inputs[fit]) * unit,
            lambda rows: scaler.transform(inputs[rows]) * unit,
            inputs.shape[1],
            0,
        )
    own = inputs[fit]
    spread = np.bincount(own.indices, minlength=own.shape[1])
    rarest = _rarest(spread, labels)
    columns = np.flatnonzero(spread >= rarest)
    columns = columns if len(columns) else np.flatnonzero(spread)
    few = len(fit) <= MAX_ROTATED
    if not few:  # the weights of frequent terms lie side by side then, where a processor finds them a sixth sooner
        columns = columns[np.argsort(-spread[columns], kind="stable")]
    # To the last digit where few documents are rotated; many need half the memory and two thirds of the time
    digits = np.float64 if few else np.float32
    own = own[:, columns].astype(digits, copy=False)
    weights = TfidfTransformer(sublinear_tf=True).fit(own)

    def weigh(rows: Ids) -> Rows:
        return weights.transform(inputs[rows][:, columns].astype(digits, copy=False), copy=False)

    return weights.transform(own, copy=False), weigh, len(columns), rarest


def _rarest(spread: Ids, labels: int) -> int:
    """In how many documents a term has to be to count: two, or as many more as keep a model within MAX_WEIGHTS. spread: of every term."""
    most = MAX_WEIGHTS // labels
    if (spread > 1).sum() <= most:
        return 2
    return int(np.sort(spread)[-most - 1]) + 1


def _rotate(fit: sparse.csr_array, weigh: Callable[[Ids], Rows]) -> tuple[Floats, Callable[[Ids], Rows]]:
    """float64[fit, rank], and what finds the same of other rows: documents in coordinates of the space that the fitted ones span.

    The weights of a regression with an L2 penalty lie in that space, and neither its loss nor the steps of L-BFGS depend on the axes.
    What does is when it stops, by the gradient's largest element: answers are the same within its tolerance (about .01 at C = 100).
    With few documents and many terms they come ten times sooner.
    """
    values, vectors = np.linalg.eigh((fit @ fit.T).toarray())
    kept = values > values[-1] * RANK_TOLERANCE
    lengths = np.sqrt(values[kept])
    return vectors[:, kept] * lengths, lambda rows: (weigh(rows) @ fit.T).toarray() @ (vectors[:, kept] / lengths)


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
