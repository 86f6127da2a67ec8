"""What a training minimizes and how: the loss, AdamW with the usual groups, and the learning-rate schedule.

The loss is a mean over the documents of an optimizer step, however they are spread over micro-batches and processes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler

from docml_contract.hyperparameters import TrainingHyperparameters
from docml_trainer.data.classifier import find_logits, find_loss
from docml_trainer.errors import TrainingError

# Names by which classification heads go, for models that do not declare a pretrained base.
HEAD_MODULES = frozenset(
    {"classifier", "classification_head", "head", "heads", "lm_head", "score", "pre_classifier", "out_proj"}
)


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


def head_parameters(model: torch.nn.Module) -> set[str]:
    """Names of the parameters of the classification head.

    A transformers model says where its pretrained base is (`base_model_prefix`): the head is everything outside it. Otherwise the
    head is every module that goes by one of the usual names (HEAD_MODULES).
    """
    names = [name for name, _ in model.named_parameters()]
    prefix = getattr(model, "base_model_prefix", "")
    if prefix and hasattr(model, prefix):
        return {name for name in names if not name.startswith(f"{prefix}.")}
    return {name for name in names if HEAD_MODULES & set(name.split("."))}


def parameter_groups(model: torch.nn.Module, settings: TrainingHyperparameters) -> list[dict[str, object]]:
    """Trainable parameters by learning rate and decay: biases, norms and other vectors do not decay.

    TrainingError if head_learning_rate is given and there is no head for it.
    """
    head = head_parameters(model)
    if settings.head_learning_rate and not any(p.requires_grad for name, p in model.named_parameters() if name in head):
        raise TrainingError(
            f"head_learning_rate = {settings.head_learning_rate} applies to nothing: the model has neither a trained part outside its "
            f"base_model_prefix nor one named {', '.join(sorted(HEAD_MODULES))}; expected one of them "
            "(rename the head's module, or leave head_learning_rate out)"
        )
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = settings.head_learning_rate if name in head and settings.head_learning_rate else settings.learning_rate
        decay = 0.0 if parameter.ndim <= 1 else settings.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def build_optimizer(
    model: torch.nn.Module, settings: TrainingHyperparameters, total_steps: int
) -> tuple[torch.optim.AdamW, LRScheduler]:
    """AdamW in its fused implementation, and a schedule over `total_steps` optimizer steps."""
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), fused=True)
    warmup = 0 if settings.lr_scheduler == "constant" else round(settings.warmup_ratio * total_steps)
    scheduler = transformers.get_scheduler(
        settings.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps
    )
    return optimizer, scheduler
