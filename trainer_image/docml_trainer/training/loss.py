"""The training loss: a mean over the documents of an optimizer step, however they are spread over micro-batches and processes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from docml_contract.hyperparameters import TrainingHyperparameters
from docml_trainer.data.classifier import find_logits, find_loss


def class_weights(labels: np.ndarray[Any, Any], num_labels: int) -> torch.Tensor:
    """float[num_labels]: inverse frequency, 1 on average over documents (as scikit-learn's "balanced"); 0 for absent labels."""
    counts = np.bincount(labels, minlength=num_labels)
    present = counts > 0
    weights = np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 0.0)
    return torch.tensor(weights, dtype=torch.float64)


class DocumentLoss:
    """Sums of document losses, to be divided by the weight of all documents of the step.

    Cross-entropy over the logits, or what forward() returns as its loss (a mean over the micro-batch), unless class weights or label
    smoothing are asked for, which forward() knows nothing of.
    """

    def __init__(self, settings: TrainingHyperparameters, labels: Sequence[int], num_labels: int) -> None:
        self.smoothing = settings.label_smoothing
        self.labels = np.asarray(labels)
        self.weights = class_weights(self.labels, num_labels) if settings.class_weights == "balanced" else None
        self.takes_models = self.weights is None and self.smoothing == 0

    def weight_of(self, rows: np.ndarray[Any, Any]) -> float:
        """The divisor for a step that trains on `rows`: their number, or the sum of their class weights."""
        if self.weights is None:
            return float(len(rows))
        return float(self.weights[torch.from_numpy(self.labels[rows])].sum())

    def __call__(self, output: Any, labels: torch.Tensor) -> torch.Tensor:
        """The sum over the documents of a micro-batch."""
        own = find_loss(output)
        if own is not None and self.takes_models:
            return own.mean() * len(labels)
        logits = find_logits(output)
        assert logits is not None, "check_model has seen logits"
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        weight = None if self.weights is None else self.weights.to(logits)
        return functional.cross_entropy(logits, labels, weight=weight, label_smoothing=self.smoothing, reduction="sum")
