"""The baseline that every model of a run is judged beside: TF-IDF over token ids, and logistic regression.

It is fitted on the train split of the data just prepared. Its answers about train documents come out of fold (five folds, which no
group and no near-duplicates straddle), those about valid and test documents from the fit on train. Of the terms those take part that at
least two of the documents have that a fit sees, and at least one in a thousand. Where no feature is a token list, standardized pooled values take the place of TF-IDF.
"""

import time
import warnings
from collections.abc import Sequence
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
from docml_trainer.preparation.baseline_inputs import EncodedDocuments, Floats, Ids, Inputs, count_terms, read_encoded
from docml_trainer.preparation.documents import order_key
from docml_trainer.preparation.splits import SplitAssignment, blocks_of

MAX_FITTED = 50_000  # documents; a stratified sample of more
MAX_CHOOSING = 2_000  # documents by which the regularization is chosen
MAX_ROTATED = 2_000  # documents up to which a fit in the space that they span is the quicker one
RANK_TOLERANCE = 1e-12
FOLDS = 5
RAREST = 1_000  # a term in fewer than one of so many documents (and in one alone) says too little of others
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
    def weighted(self) -> Inputs:
        """TF-IDF or standardized values of all documents, rows of unit length: by its cosine documents are similar."""
        if isinstance(self.inputs, np.ndarray):
            return normalize(StandardScaler().fit_transform(self.inputs))
        return TfidfTransformer(sublinear_tf=True).fit_transform(self.inputs)

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
    folds = _folds(blocks, fitted, documents)
    if folds.max() < 1:
        return "all documents of the train split belong together, so none could be held out"
    inputs: Inputs | None = documents.values
    hashed = False
    if inputs is None:
        inputs, hashed = count_terms(documents.tokens, documents.ends)
    width = len(label_names)
    choosers = _sample(fitted, documents, MAX_CHOOSING)
    probabilities = np.zeros((len(documents.guids), width), dtype=np.float32)
    if len(choosers) == len(fitted):
        chosen, probabilities[fitted] = choose_strength(inputs, documents.labels, fitted, folds, width)
    else:
        own = folds[np.searchsorted(fitted, choosers)]
        chosen = _choose_by_sample(inputs, documents.labels, choosers, own, width)
        (probabilities[fitted],) = _out_of_fold(inputs, documents.labels, fitted, folds, [chosen], width)
    others = np.setdiff1d(np.arange(len(documents.guids)), fitted)
    probabilities[others], terms = answer(inputs, documents.labels, fitted, others, chosen, width)
    facts = {
        "inputs": "terms" if documents.values is None else "pooled values",
        "documents": len(fitted),
        "of_train_documents": int(train.sum()),
        "terms": terms,
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


def choose_strength(inputs: Inputs, labels: Ids, rows: Ids, folds: Ids, width: int) -> tuple[float, Probabilities]:
    """The strength with the lowest log loss out of fold on these rows, and its answers about them. folds: int64[rows]."""
    found = _out_of_fold(inputs, labels, rows, folds, STRENGTHS, width)
    best = _least_loss(labels[rows], found)
    return STRENGTHS[best], found[best]


def _choose_by_sample(inputs: Inputs, labels: Ids, rows: Ids, folds: Ids, width: int) -> float:
    """The same by one fold of a sample, whose answers nobody needs. folds: int64[rows]."""
    inside = folds == folds[0]
    found, _ = _answers(inputs, labels, rows[~inside], rows[inside], STRENGTHS, width)
    return STRENGTHS[_least_loss(labels[rows[inside]], found)]


def _least_loss(truth: Ids, answers: Sequence[Probabilities]) -> int:
    """Which of these is best."""
    return int(np.argmin([log_loss(truth, values, labels=range(values.shape[1])) for values in answers]))


def _out_of_fold(
    inputs: Inputs, labels: Ids, rows: Ids, folds: Ids, strengths: Sequence[float], width: int
) -> list[Probabilities]:
    """By strength, the answers about these rows of models that were not fitted on their fold."""
    found = [np.zeros((len(rows), width), dtype=np.float32) for _ in strengths]
    for fold in np.unique(folds):
        inside = folds == fold
        said, _ = _answers(inputs, labels, rows[~inside], rows[inside], strengths, width)
        for values, answers in zip(found, said, strict=True):
            values[inside] = answers
    return found


def answer(inputs: Inputs, labels: Ids, fit: Ids, asked: Ids, strength: float, width: int) -> tuple[Probabilities, int]:
    """float32[asked, width]: probabilities of a model fitted on the rows `fit`; and how many terms or values it knows."""
    (said,), terms = _answers(inputs, labels, fit, asked, [strength], width)
    return said, terms


def _answers(
    inputs: Inputs, labels: Ids, fit: Ids, asked: Ids, strengths: Sequence[float], width: int
) -> tuple[list[Probabilities], int]:
    """The same of one model a strength."""
    found = [np.zeros((len(asked), width), dtype=np.float32) for _ in strengths]
    known = np.unique(labels[fit])
    if len(known) == 1:
        for values in found:
            values[:, known[0]] = 1
        return found, 0
    known_values, asked_values, terms = _weigh(inputs, fit, asked)
    # One thread: several wait for each other for longer than they help, and their number would show in the last digits.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # as good as it is after so many iterations
        if len(fit) <= MAX_ROTATED and sparse.issparse(known_values):
            known_values, asked_values = _rotate(known_values, asked_values)
        for values, strength in zip(found, strengths, strict=True):
            model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=tolerance(len(fit)))
            model.fit(known_values, labels[fit])
            if len(asked):
                values[:, model.classes_] = model.predict_proba(asked_values)
    return found, terms


def rarest(documents: int) -> int:
    """In how many of so many documents a term has to be to count."""
    return max(2, documents // RAREST)


def tolerance(documents: int) -> float:
    """When the fit on so many documents is as good as done: scikit-learn's own, or what takes half the steps for the same scores."""
    return 1e-4 if documents <= MAX_ROTATED else 1e-3


def _weigh(inputs: Inputs, fit: Ids, asked: Ids) -> tuple[Inputs, Inputs, int]:
    """What a model fitted on the rows `fit` reads of these and of the rows `asked`, and how many terms or values that are."""
    if isinstance(inputs, np.ndarray):
        scaler = StandardScaler().fit(inputs[fit])
        unit = inputs.shape[1] ** -0.5  # rows of about unit length, as those of TF-IDF: a strength means the same
        return scaler.transform(inputs[fit]) * unit, scaler.transform(inputs[asked]) * unit, inputs.shape[1]
    own = inputs[fit]
    spread = own.count_nonzero(axis=0)
    columns = np.flatnonzero(spread >= rarest(len(fit)))
    columns = columns if len(columns) else np.flatnonzero(spread)
    weights = TfidfTransformer(sublinear_tf=True).fit(own[:, columns])
    return weights.transform(own[:, columns]), weights.transform(inputs[asked][:, columns]), len(columns)


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
