"""Macro-F1: the mean of the labels' F1 scores."""

from typing import Any

import datasets
import evaluate
import numpy as np


class MacroF1(evaluate.Metric):
    """`compute(predictions=ids, references=ids) -> {"f1": float}`.

    The mean over labels with support; a label that is never predicted has F1 0. Equal to scikit-learn's
    `f1_score(references, predictions, labels=np.unique(references), average="macro", zero_division=0)`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean F1 over the labels that occur in the references.",
            citation="",
            inputs_description="predictions, references: label ids",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predicted, truth = np.asarray(predictions), np.asarray(references)
        labels = np.unique(truth)
        hits = np.array([np.sum((predicted == label) & (truth == label)) for label in labels])
        support = np.array([np.sum(truth == label) for label in labels])
        claimed = np.array([np.sum(predicted == label) for label in labels])
        return {"f1": float(np.mean(2 * hits / (support + claimed)))}
