"""Scores of one model, from its confusion matrix. Definitions are scikit-learn's with zero_division = 0."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from docml_assets.report.predictions import Floats, Ids

ECE_BINS = 15


@dataclass(frozen=True)
class LabelScores:
    """By label id: float64[k] and int64[k]. `accuracy` is correct / support, which is recall; all are 0 where undefined."""

    f1: Floats
    precision: Floats
    recall: Floats
    support: Ids
    correct: Ids
    predicted: Ids

    @property
    def accuracy(self) -> Floats:
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
        return float(self.correct.sum() / self.support.sum())


def confusion_matrix(truth: Ids, predicted: Ids, num_labels: int) -> Ids:
    """int64[k, k]: rows truth, columns prediction."""
    return np.bincount(truth * num_labels + predicted, minlength=num_labels**2).reshape(num_labels, num_labels)


def label_scores(confusion: Ids) -> LabelScores:
    """Scores by label of a confusion matrix int64[k, k]."""
    correct, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return LabelScores(
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
