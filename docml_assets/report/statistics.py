"""Scores of one model from its confusion matrix, and how far they would move with other test documents of the same kind.

Definitions are scikit-learn's with zero_division = 0. The bootstrap scores every model on the same resamples, so that the difference of
two models is resampled in pairs. Documents that depend on each other (SPLIT_BY groups) are drawn together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

from docml_assets.report.predictions import Floats, Ids, Predictions

ECE_BINS = 15
RESAMPLES = 2000
SEED = 20_170_613
LEVEL = 0.95
_BLOCK = 4_000_000  # numbers held at once: 32 MB


@dataclass(frozen=True)
class LabelScores:
    """By label id: float64[k] and int64[k]. `accuracy` is correct / support, which is recall; all are 0 where undefined.

    confusion: int64[k, k], rows truth, columns prediction.
    """

    confusion: Ids
    f1: Floats
    precision: Floats
    recall: Floats
    support: Ids
    correct: Ids
    predicted: Ids

    @property
    def accuracy(self) -> Floats:
        """float[labels]: correct / support, which is the recall."""
        return self.recall

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which labels have documents in the test split."""
        return self.support > 0

    @property
    def f1_macro(self) -> float:
        """Mean F1 over the labels with support."""
        return float(self.f1[self.present].mean())

    @property
    def f1_weighted(self) -> float:
        """Mean F1 weighted by support."""
        return float((self.f1 * self.support).sum() / self.support.sum())

    @property
    def total_accuracy(self) -> float:
        """Share of all documents that is right."""
        return float(self.correct.sum() / self.support.sum())


def confusion_matrix(truth: Ids, predicted: Ids, num_labels: int) -> Ids:
    """int64[k, k]: rows truth, columns prediction."""
    return np.bincount(truth * num_labels + predicted, minlength=num_labels**2).reshape(num_labels, num_labels)


def label_scores(confusion: Ids) -> LabelScores:
    """Scores by label of a confusion matrix int64[k, k]."""
    correct, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return LabelScores(
        confusion=confusion,
        f1=_ratio(2 * correct, support + predicted),
        precision=_ratio(correct, predicted),
        recall=_ratio(correct, support),
        support=support,
        correct=correct,
        predicted=predicted,
    )


def macro_f1(correct: Floats, support: Floats, predicted: Floats) -> Floats:
    """Macro-F1 of many counts at once: each argument float64[…, k], the result float64[…].

    Mean over the labels with support, zero_division = 0. At least one label must have support.
    """
    present = support > 0
    return np.asarray((_ratio(2 * correct, support + predicted) * present).sum(axis=-1) / present.sum(axis=-1))


@dataclass(frozen=True)
class CalibrationBin:
    """Documents whose top probability lies in (low, high]."""

    low: float
    high: float
    count: int
    confidence: float | None  # mean probability, None where the bin is empty
    accuracy: float | None


def calibration(probability: Floats, correct: npt.NDArray[np.bool_]) -> tuple[float, list[CalibrationBin]]:
    """Expected calibration error over 15 equal-width bins of the top label's probability, and the bins.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017: sum over bins of count / n * |accuracy - confidence|.
    Bins are open on the left, closed on the right; the first one also holds 0.
    """
    edges = np.linspace(0.0, 1.0, ECE_BINS + 1)
    which = np.digitize(probability, edges[1:-1], right=True)
    bins, error = [], 0.0
    for index in range(ECE_BINS):
        inside = which == index
        count = int(inside.sum())
        confidence = float(probability[inside].mean()) if count else None
        accuracy = float(correct[inside].mean()) if count else None
        if confidence is not None and accuracy is not None:
            error += count / len(probability) * abs(accuracy - confidence)
        bins.append(CalibrationBin(float(edges[index]), float(edges[index + 1]), count, confidence, accuracy))
    return error, bins


def _ratio(numerator: npt.NDArray[np.generic], denominator: npt.NDArray[np.generic]) -> Floats:
    """Element-wise quotient, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator != 0)


def resampled_f1(predictions: Predictions) -> dict[str, Floats]:
    """Macro-F1 of every model in 2,000 resamples: model -> float64[2000].

    Resample i takes the documents (with groups: the groups, in the order of their first document) at the positions
    `rng.integers(0, n, n)`, the i-th such draw of `numpy.random.default_rng(SEED)`, and is scored by the definition of macro-F1,
    over the labels that have support in it.
    """
    cell_of_unit, counts = _units(predictions)
    width, models = len(predictions.labels), len(predictions.models)
    blocks: dict[str, list[Floats]] = {model: [] for model in predictions.models}
    for totals in _draws(cell_of_unit, counts.shape[0], counts.shape[1]):
        by_kind = (totals @ counts).reshape(len(totals), 2 * models + 1, width)
        for index, model in enumerate(predictions.models):
            correct, predicted = by_kind[:, 1 + index], by_kind[:, 1 + models + index]
            blocks[model].append(macro_f1(correct, by_kind[:, 0], predicted))
    return {model: np.concatenate(parts) for model, parts in blocks.items()}


def interval(estimate: float, resampled: Floats) -> tuple[float, float]:
    """Bias-corrected percentile interval at 95 %.

    Efron, Nonparametric standard errors and confidence intervals, 1981. F1 is a ratio whose resamples lie below the estimate where
    labels are rare; the plain percentile interval then covers too little (90 % at 400 documents and 20 skewed labels), this one holds
    (bench/report_statistics.py). Resamples equal to the estimate count half.
    """
    below = (np.sum(resampled < estimate) + 0.5 * np.sum(resampled == estimate)) / len(resampled)
    edge = 0.5 / len(resampled)
    shift = 2 * stats.norm.ppf(np.clip(below, edge, 1 - edge))
    tail = stats.norm.ppf((1 - LEVEL) / 2)
    low, high = np.quantile(resampled, stats.norm.cdf([shift + tail, shift - tail]))
    return float(low), float(high)


def _units(predictions: Predictions) -> tuple[Ids, sparse.csr_array]:
    """What is drawn, and what each contributes.

    Documents that are alike in truth and all predictions form a cell, which is drawn as often as any of its documents: int64[units], the
    cell of each unit, and float64[cells, (1 + 2 m) k], what one unit of the cell adds to the support, the correct and the predicted
    counts (m models, k labels).
    """
    cells, first = _cells(predictions)
    width, models = len(predictions.labels), len(predictions.models)
    truth = predictions.truth[first]
    columns, rows = [truth], [np.arange(len(first))]
    for index, ids in enumerate(predictions.predicted.values()):
        said = ids[first]
        right = np.flatnonzero(said == truth)
        columns += [(1 + index) * width + said[right], (1 + models + index) * width + said]
        rows += [right, np.arange(len(first))]
    column, row = np.concatenate(columns), np.concatenate(rows)
    shape = (len(first), (1 + 2 * models) * width)
    counts = sparse.csr_array((np.ones(len(column)), (row, column)), shape=shape)
    if predictions.groups is None:
        return cells, counts
    number = int(predictions.groups.max()) + 1
    members = sparse.csr_array((np.ones(len(cells)), (predictions.groups, cells)), shape=(number, len(first)))
    return np.arange(number), sparse.csr_array(members @ counts)


def _cells(predictions: Predictions) -> tuple[Ids, Ids]:
    """int64[n], the cell of each document, and int64[cells], one document of each cell."""
    width = len(predictions.labels)
    cells = predictions.truth
    for ids in predictions.predicted.values():
        _, cells = np.unique(cells * width + ids, return_inverse=True)
    _, first, cells = np.unique(cells, return_index=True, return_inverse=True)
    return cells, first


def _draws(cell_of_unit: Ids, cells: int, columns: int) -> Iterator[Floats]:
    """How often each cell is drawn: float64[resamples, cells], in blocks; each is multiplied into as many rows of `columns`."""
    rng = np.random.default_rng(SEED)
    units = len(cell_of_unit)
    block = max(1, _BLOCK // max(units, cells, columns))
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        chosen = cell_of_unit[rng.integers(0, units, size=(rows, units))]
        chosen += np.arange(rows)[:, None] * cells
        yield np.bincount(chosen.ravel(), minlength=rows * cells).reshape(rows, cells).astype(np.float64)
