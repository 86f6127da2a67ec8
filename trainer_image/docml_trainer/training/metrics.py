"""Metrics as `evaluate` modules that ship with the trainer: loading one from the Hub would need the network."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np


def scores(
    predictions: Sequence[int] | np.ndarray[Any, Any], references: Sequence[int] | np.ndarray[Any, Any]
) -> dict[str, float]:
    """`{"accuracy", "f1"}` of label ids against label ids; at least one document."""
    return {
        **Accuracy(keep_in_memory=True).compute(predictions=predictions, references=references),
        **MacroF1(keep_in_memory=True).compute(predictions=predictions, references=references),
    }


class LabelMetric(evaluate.Metric):
    """A metric of predicted label ids against true ones; its docstring is its description."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="predictions, references: label ids",
            features=datasets.Features({"predictions": ids, "references": ids}),
        )


class Accuracy(LabelMetric):
    """`compute(predictions=ids, references=ids) -> {"accuracy": float}`: the share of predictions that are right."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


class MacroF1(LabelMetric):
    """`compute(predictions=ids, references=ids) -> {"f1": float}`.

    The mean over labels with support; a label that is never predicted has F1 0. Equal to scikit-learn's
    `f1_score(references, predictions, labels=np.unique(references), average="macro", zero_division=0)`.
    """

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predicted, truth = np.asarray(predictions), np.asarray(references)
        labels = np.unique(truth)
        hits = np.array([np.sum((predicted == label) & (truth == label)) for label in labels])
        support = np.array([np.sum(truth == label) for label in labels])
        claimed = np.array([np.sum(predicted == label) for label in labels])
        return {"f1": float(np.mean(2 * hits / (support + claimed)))}
