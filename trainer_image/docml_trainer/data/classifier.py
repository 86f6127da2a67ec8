"""The experimenter's model as the training loop sees it: features in, logits and a loss out, and what can be wrong with it."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from docml_trainer.data.collate import ATTENTION_MASK, ROW_IDS
from docml_trainer.data.shapes import LABELS
from docml_trainer.errors import UserCodeError
from docml_trainer.functions import UserFunctions, explain
from docml_trainer.machine import is_out_of_memory

Batch = Mapping[str, torch.Tensor]


def forward_parameters(model: torch.nn.Module) -> tuple[str, ...]:
    """Names of forward()'s parameters; `**kwargs` and the like are left out."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds)


def find_logits(output: Any) -> torch.Tensor | None:
    """`output.logits`, `output["logits"]`, or the output itself where it is a tensor."""
    if isinstance(output, torch.Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return logits if isinstance(logits, torch.Tensor) else None


def find_loss(output: Any) -> torch.Tensor | None:
    """The loss that forward() computed itself, if it did."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return loss if isinstance(loss, torch.Tensor) else None


@dataclass(frozen=True)
class Classifier:
    """A model and how to call it. `module` is the bare model, or a wrapper of it for several processes."""

    module: torch.nn.Module
    parameters: tuple[str, ...]
    needs_labels: bool
    takes_any: bool  # forward() has **keywords, into which goes what it does not name

    @classmethod
    def of(cls, model: torch.nn.Module) -> "Classifier":
        signature = inspect.signature(model.forward).parameters
        labels = signature.get(LABELS)
        needs_labels = labels is not None and labels.default is inspect.Parameter.empty
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())
        return cls(model, forward_parameters(model), needs_labels, takes_any)

    def wrapped(self, module: torch.nn.Module) -> "Classifier":
        return replace(self, module=module)

    def __call__(self, batch: Batch, *, with_labels: bool) -> Any:
        """forward() on the features it names; `labels` only where asked for, or where forward() insists."""
        left_out = {ROW_IDS} if with_labels or self.needs_labels else {ROW_IDS, LABELS}
        inputs = {name: value for name, value in batch.items() if name not in left_out and self.accepts(name)}
        return self.module(**inputs)

    def accepts(self, name: str) -> bool:
        """Whether forward() takes it. Labels have to be named: there is no telling what **keywords would do with them."""
        return name in self.parameters or (self.takes_any and name != LABELS)

    def logits(self, batch: Batch) -> torch.Tensor:
        """float[documents, labels], without gradients."""
        with torch.no_grad():
            logits = find_logits(self(batch, with_labels=False))
        assert logits is not None, "check_model has seen logits"
        return logits


def check_model(classifier: Classifier, batch: Batch, num_labels: int, functions: UserFunctions) -> None:
    """One forward pass: UserCodeError if it fails, has no logits, or has them for another number of labels."""
    file = functions.path.name
    missing = [name for name in batch if name not in (LABELS, ROW_IDS, ATTENTION_MASK) and not classifier.accepts(name)]
    if missing:
        raise UserCodeError(
            f"{file}: forward() of the loaded model takes {', '.join(classifier.parameters)}; it lacks "
            f"{', '.join(missing)}, which encode_data returns (add the parameter, or drop the feature)"
        )
    classifier.module.eval()
    try:
        with torch.no_grad():
            output = classifier(batch, with_labels=False)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserCodeError(
            f"{file}: forward() of the loaded model failed: {explain(error, functions.path)}"
        ) from error
    logits = find_logits(output)
    if logits is None:
        found = f"keys {', '.join(output)}" if isinstance(output, Mapping) else type(output).__name__
        raise UserCodeError(
            f"{file}: forward() of the loaded model returned {found}; expected an output with .logits "
            "(float[documents, labels])"
        )
    documents = len(batch[LABELS])
    if tuple(logits.shape) != (documents, num_labels):
        raise UserCodeError(
            f"{file}: load_model returned a model with logits of shape {list(logits.shape)} for {documents} documents; "
            f"expected [{documents}, {num_labels}], as the data have {num_labels} labels (pass num_labels=context.num_labels)"
        )


def check_all_parameters_used(classifier: Classifier, batch: Batch, functions: UserFunctions) -> None:
    """UserCodeError that names the trainable parameters without a gradient: processes would wait for them for ever."""
    model = classifier.module
    with torch.random.fork_rng():
        output = classifier(batch, with_labels=True)
        loss, logits = find_loss(output), find_logits(output)
        assert logits is not None
        (logits.sum() if loss is None else loss).backward()
    unused = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    model.zero_grad(set_to_none=True)
    if unused:
        shown = ", ".join(unused[:6]) + (f" and {len(unused) - 6} more" if len(unused) > 6 else "")
        raise UserCodeError(
            f"{functions.path.name}: forward() of the loaded model does not use {shown}; training in several processes needs a "
            "gradient for every trainable parameter (leave them out, as with add_pooling_layer=False, or freeze them with "
            "requires_grad_(False))"
        )
