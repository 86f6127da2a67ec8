"""Hyperparameters: the platform's own (one model, documented defaults), the search space, and their encoding as strings.

SageMaker carries hyperparameters as strings, and a tuned categorical may arrive JSON-quoted: values are encoded as JSON and
decoded as JSON, falling back to the raw text.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from docml_contract.base import BadHyperparameter, Document

Scalar = str | int | float | bool
# Set by SageMaker's tuner (and by local searches) on every child job; tells tuning from training.
TUNING_OBJECTIVE = "_tuning_objective_metric"


class TrainingHyperparameters(BaseModel):
    """What the training loop itself reads. Any other hyperparameter is the experimenter's own."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    epochs: int = Field(3, ge=1, le=10_000, description="passes over the training split")
    learning_rate: float = Field(5e-5, gt=0, le=10, description="peak learning rate of AdamW")
    head_learning_rate: float | None = Field(
        None,
        gt=0,
        le=10,
        description="learning rate of the classification head: of a transformers model, what lies outside its pretrained base; of any "
        "other, the modules named classifier, classification_head, head, heads, lm_head, score, pre_classifier or out_proj; "
        "none: learning_rate",
    )
    train_batch_size: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] = Field(
        16,
        description="documents per micro-batch and process; auto: as many as fit into the GPU's memory (16 on a "
        "CPU), in steps that train on 16 × gradient_accumulation_steps documents per process",
    )
    eval_batch_size: int = Field(32, ge=1, le=65_536, description="documents per validation batch and process")
    gradient_accumulation_steps: int = Field(1, ge=1, le=65_536, description="micro-batches per optimizer step")
    weight_decay: float = Field(0.01, ge=0, le=10, description="AdamW decay, not applied to biases and norms")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="share of the optimizer steps that warm up")
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = Field(
        "linear", description="schedule after the warm-up"
    )
    max_grad_norm: float = Field(1.0, ge=0, description="gradient clipping by global norm; 0 turns it off")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability mass spread over the other labels")
    class_weights: Literal["none", "balanced"] = Field("none", description="balanced: inverse label frequency")
    mixed_precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the GPU supports it, else fp32"
    )
    weights_dtype: Literal["float32", "as_loaded"] = Field(
        "float32",
        description="data type of the weights that are trained: float32, whatever the checkpoint was stored in; "
        "as_loaded: as load_model returns them, though updates smaller than bfloat16 or float16 can resolve are lost",
    )
    seed: int = Field(13, ge=0, le=2**32 - 1, description="of initialization, order and dropout")
    early_stopping_patience: int | None = Field(
        None, ge=1, description="epochs without a better validation macro-F1 before stopping; none: never"
    )
    checkpoint_every_steps: int | None = Field(
        None, ge=1, description="optimizer steps between checkpoints; none: only after every epoch"
    )
    gradient_checkpointing: bool = Field(False, description="trade time for memory, where the model supports it")
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="compile the model's layers, into at most eight graphs, and replay packed layers as CUDA graphs "
        "where one process trains; auto: on a GPU, where the training takes minutes",
    )
    packing: bool | Literal["auto"] = Field(
        "auto",
        description="compute without padding, with variable-length flash attention, where the model supports it "
        "(BERT, RoBERTa, XLM-RoBERTa, "
        "CamemBERT, ELECTRA, DistilBERT); auto: on a GPU in half precision",
    )


DEFAULT_BATCH = 16  # documents per micro-batch and process, where train_batch_size = auto does not say otherwise
KNOWN = tuple(TrainingHyperparameters.model_fields)
# Those that came when there were runs already: settings hold them only where they are written, so that versions and hashes of runs
# that know nothing of them stay as they are.
LATER = frozenset({"weights_dtype", "compile", "packing"})


def check(values: Mapping[str, Any]) -> TrainingHyperparameters:
    """The platform's own hyperparameters out of `values`; BadHyperparameter names every one that is wrong."""
    given = {key: (None if value == "none" and key != "class_weights" else value) for key, value in values.items()}
    try:
        return TrainingHyperparameters.model_validate(given)
    except ValidationError as error:
        complaints: dict[str, list[str]] = {}  # a value of several types has one complaint a type
        for each in error.errors():
            complaints.setdefault(f"hyperparameter {each['loc'][0]} = {each['input']!r}", []).append(each["msg"])
        raise BadHyperparameter(
            "; ".join(f"{found}: {', or '.join(messages)}" for found, messages in complaints.items())
        ) from error


def own(values: Mapping[str, Any]) -> dict[str, Any]:
    """The experimenter's own hyperparameters: all that the training loop does not read."""
    return {key: value for key, value in values.items() if key not in KNOWN and key != TUNING_OBJECTIVE}


def encode(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as the strings that SageMaker carries: JSON, except that plain text stays plain."""
    return {
        key: value if isinstance(value, str) and _is_plain(value) else json.dumps(value)
        for key, value in values.items()
    }


def decode(values: Mapping[str, str]) -> dict[str, Any]:
    """The inverse of `encode`; also takes JSON-quoted and raw strings."""
    return {key: parse_scalar(value) for key, value in values.items()}


def parse_scalar(text: str) -> Any:
    """JSON if it is JSON, else the raw text; `True`/`False` and NaN-like words stay text, and so does what no reader takes: numbers of
    thousands of digits, a thousand brackets."""
    try:
        return json.loads(text, parse_constant=lambda word: word)
    except (ValueError, RecursionError):
        return text


def _is_plain(text: str) -> bool:
    return parse_scalar(text) == text


class Interval(Document):
    """A searched interval, both ends included."""

    kind: Literal["interval"] = "interval"
    low: float
    high: float
    integer: bool = Field(False, description="both ends were written as integers")
    log: bool = Field(False, description="searched on a logarithmic scale")


class Choice(Document):
    """A searched list of values."""

    kind: Literal["choice"] = "choice"
    values: tuple[Scalar, ...]


SearchRange = Annotated[Interval | Choice, Field(discriminator="kind")]


def decode_tuned(values: Mapping[str, str], ranges: Mapping[str, SearchRange]) -> dict[str, Any]:
    """`decode`, where some values were drawn from `ranges`: a choice gets back the type that the settings gave it.

    A tuner hands a choice over as the string it was given, perhaps quoted once more: `8` may arrive as `"8"`.
    """
    decoded = decode(values)
    for name, searched in ranges.items():
        if isinstance(searched, Choice) and name in values:
            spellings = {encode({"": value})[""]: value for value in searched.values}
            text = values[name]
            quoted = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
            decoded[name] = spellings.get(text, spellings.get(quoted, decoded[name]))
    return decoded
