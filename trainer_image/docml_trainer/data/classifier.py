"""The experimenter's model as the training loop sees it: features in, logits and a loss out, and what can be wrong with it."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from docml_trainer.container import is_out_of_memory
from docml_trainer.data.collate import ROW_IDS
from docml_trainer.data.shapes import ATTENTION_MASK, INPUT_IDS, LABELS
from docml_trainer.errors import Stopped, TrainerError, UserCodeError
from docml_trainer.functions import UserFunctions, explain

Batch = Mapping[str, torch.Tensor]
HALF_PRECISION = (torch.float16, torch.bfloat16)
INDEPENDENCE_TOLERANCE = 1e-3  # of a logit, relative to the largest one; the export's gate is stricter
# What models say when something common is wrong, and what to do about it.
REMEDIES = {
    "no padding token": "set config.pad_token_id to the value that PADDING has for input_ids, before or after the model is made",
    "more than 1 value per channel": "batch normalization needs two documents per batch: raise train_batch_size, or use LayerNorm",
    "index out of range": "a feature holds an id beyond the model's embeddings, of its vocabulary or of its positions",
    "expanded size of the tensor": "a document may be longer than the model has positions: truncate it in encode_data",
    "must have the same dtype": "parts of the model have different data types: call .float() on the whole model in load_model",
    "meta tensor": "the weights are not loaded: load_model must put them on the CPU (no device_map, no init_empty_weights)",
    "does not require grad": "forward() cuts the gradient: look for torch.no_grad, .detach() or .item()",
}


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
    required: tuple[str, ...]  # parameters without a default
    takes_any: bool  # forward() has **keywords, into which goes what it does not name

    @classmethod
    def of(cls, model: torch.nn.Module) -> "Classifier":
        """The bare model, with what its forward() takes."""
        signature = inspect.signature(model.forward).parameters
        names = forward_parameters(model)
        required = tuple(name for name in names if signature[name].default is inspect.Parameter.empty)
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())
        return cls(model, names, required, takes_any)

    def wrapped(self, module: torch.nn.Module) -> "Classifier":
        """The same model inside of a wrapper, whose own forward() has no signature to look at."""
        return replace(self, module=module)

    def __call__(self, batch: Batch, *, with_labels: bool) -> Any:
        """forward() on the features it names; `labels` only where asked for, or where forward() insists."""
        left_out = {ROW_IDS} if with_labels or LABELS in self.required else {ROW_IDS, LABELS}
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


def train_in_float32(model: torch.nn.Module) -> list[str]:
    """Turn half-precision weights into float32 where any of them trains. Returns the types found.

    A checkpoint stored in bfloat16 is loaded in bfloat16, where most steps of an optimizer are too small to change a weight.
    """
    halves = {p.dtype for p in model.parameters() if p.requires_grad and p.dtype in HALF_PRECISION}
    if halves:
        for parameter in model.parameters():
            if parameter.dtype in HALF_PRECISION:
                parameter.data = parameter.data.float()
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.dtype in HALF_PRECISION:
                    setattr(module, name, buffer.float())
    return sorted(str(dtype).removeprefix("torch.") for dtype in halves)


def check_trainable(model: torch.nn.Module, functions: UserFunctions) -> None:
    """UserCodeError if nothing can be trained, or if the model's own loss is not one of single labels."""
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if problem not in (None, "single_label_classification"):
        raise UserCodeError(
            f"{line_of(functions, 'problem_type')}: load_model returned a model with problem_type = {problem!r}; "
            "expected single_label_classification, as every document has one label (leave problem_type out)"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserCodeError(
            f"{line_of(functions, 'requires_grad')}: load_model returned a model whose weights are all frozen; expected at least "
            "one that trains (let the classification head train: model.classifier.requires_grad_(True))"
        )


def padding_of(model: torch.nn.Module, functions: UserFunctions) -> dict[str, float]:
    """PADDING, and for input_ids, where it is not among them, the pad id of the model's configuration.

    UserCodeError if the two disagree: documents would be padded with what the model takes for a word.
    """
    configs = [getattr(module, "config", None) for module in model.modules()]
    ids = {i for i in (getattr(config, "pad_token_id", None) for config in configs) if isinstance(i, int) and i >= 0}
    padding = dict(functions.padding)
    if len(ids) != 1:  # no configuration, or parts of the model that disagree among themselves
        return padding
    (own,) = ids
    if padding.setdefault(INPUT_IDS, own) != own:
        raise UserCodeError(
            f"{line_of(functions, 'PADDING')}: PADDING has {INPUT_IDS} = {padding[INPUT_IDS]}, the configuration of the loaded model has "
            f"pad_token_id = {own}; expected the same value (leave {INPUT_IDS} out of PADDING, or set config.pad_token_id)"
        )
    return padding


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
    with torch.no_grad(), explained_model(functions):
        output = classifier(batch, with_labels=False)
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
    if num_labels > 1 and _are_probabilities(logits):
        raise UserCodeError(
            f"{line_of(functions, 'softmax')}: forward() of the loaded model returned probabilities, which sum to 1; expected logits, of "
            "which docml takes the softmax itself: softmax of softmax would hide how sure the model is (return what "
            "goes into softmax, or the log of the probabilities)"
        )


def _are_probabilities(logits: torch.Tensor) -> bool:
    if not logits.is_floating_point():
        return False
    values = logits.float()
    return bool((values >= 0).all() and ((values.sum(-1) - 1).abs() < 1e-5).all() and (values < 1).all())


def check_keys(keys: Sequence[str], features: Sequence[str], classifier: Classifier, functions: UserFunctions) -> None:
    """UserCodeError if ordered_input_keys names what the data do not have, or leaves out what forward() requires."""
    unknown = [key for key in keys if key not in features]
    if unknown:
        raise UserCodeError(
            f"{line_of(functions, 'def ordered_input_keys')}: ordered_input_keys returned {', '.join(unknown)}, which are not features "
            f"of the encoded data; expected some of {', '.join(features)}, in the order of forward()'s parameters"
        )
    missing = [name for name in classifier.required if name not in keys]
    if missing:
        raise UserCodeError(
            f"{line_of(functions, 'def ordered_input_keys')}: ordered_input_keys returned {', '.join(keys)}, without "
            f"{', '.join(missing)}; expected all that forward() of the loaded model requires (name it too, or give the parameter a "
            "default: labels are unknown where a model is used)"
        )


def check_independence(
    classifier: Classifier,
    collate: Callable[[Sequence[Mapping[str, Any]]], Batch],
    rows: Sequence[Mapping[str, Any]],
    functions: UserFunctions,
) -> None:
    """UserCodeError if what the model says about a document depends on chance, or on the others of its batch.

    collate: makes the batch that the export will be given, of the features in ordered_input_keys.
    """
    classifier.module.eval()
    with explained_model(functions):
        alone, again = (torch.cat([classifier.logits(collate([row])) for row in rows]) for _ in range(2))
        together = classifier.logits(collate(rows))
    scale = max(1e-2, float(alone.abs().max()))
    if float((alone - again).abs().max()) / scale > INDEPENDENCE_TOLERANCE:
        raise UserCodeError(
            f"{line_of(functions)}: the loaded model answers differently each time it is asked about the same document; expected "
            "equal answers in evaluation mode (functional.dropout needs training=self.training; draw random numbers in training only)"
        )
    difference = float((alone - together).abs().max()) / scale
    if difference > INDEPENDENCE_TOLERANCE:
        raise UserCodeError(
            f"{line_of(functions)}: the loaded model answers differently for a document alone and padded in a batch with a longer "
            f"one (a logit by {difference:.2g} of the largest); expected equal answers. Usually forward() lets "
            "padding affect the answer: use "
            "attention_mask, also in means over tokens, name it in ordered_input_keys, and pad with the value that the model was "
            "made with (PADDING)"
        )


@contextmanager
def explained_model(functions: UserFunctions, place: str = "") -> Iterator[None]:
    """Turn what the model raises (neither running out of memory nor a lost process) into a UserCodeError with the experimenter's own line."""
    try:
        yield
    except (TrainerError, Stopped):
        raise
    except BaseException as error:
        if is_out_of_memory(error) or is_lost_connection(error):
            raise
        text = explain(error, functions.path)
        if functions.path.name not in text:  # nothing of the experimenter's was running: a library's model
            text += f" ({line_of(functions)})"
        remedy = next((f"; {remedy}" for said, remedy in REMEDIES.items() if said in text), "")
        raise UserCodeError(
            f"{functions.path.name}: forward() of the loaded model failed{place and f' in {place}'}: {text}{remedy}"
        ) from error


def is_lost_connection(error: BaseException) -> bool:
    """Whether another training process went away (NCCL's own error, or Gloo's, which is a RuntimeError)."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def line_of(functions: UserFunctions, word: str | None = None) -> str:
    """`user_defined_funcs.py, line 24: <the line>`: the first line with that word, else the last `return` of load_model."""
    lines = functions.path.read_text(encoding="utf-8-sig").splitlines()
    found = next((number for number, line in enumerate(lines, start=1) if word and word in line), None)
    if found is None:
        source, first = inspect.getsourcelines(functions.module.load_model)
        ends = [first + index for index, line in enumerate(source) if line.lstrip().startswith("return")]
        found = ends[-1] if ends else first
    return f"{functions.path.name}, line {found}: {lines[found - 1].strip()}"


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
