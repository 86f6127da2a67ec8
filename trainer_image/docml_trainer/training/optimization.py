"""AdamW with the usual groups, and the learning-rate schedule."""

import torch
import transformers
from torch.optim.lr_scheduler import LRScheduler

from docml_contract.hyperparameters import TrainingHyperparameters

# Names by which classification heads go, for models that do not declare a pretrained base.
HEAD_MODULES = frozenset(
    {"classifier", "classification_head", "head", "heads", "lm_head", "score", "pre_classifier", "out_proj"}
)


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
    """Trainable parameters by learning rate and decay: biases, norms and other vectors do not decay."""
    head = head_parameters(model)
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
