"""What a training is made of, put together from the job's folder before the first step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler

from docml_contract.base import digest
from docml_contract.hyperparameters import TUNING_OBJECTIVE, TrainingHyperparameters, check
from docml_contract.jobs import JobSpec, TrainTask
from docml_contract.names import column_prefix
from docml_trainer.container import Folders
from docml_trainer.data.classifier import (
    Classifier,
    check_all_parameters_used,
    check_independence,
    check_keys,
    check_model,
    check_trainable,
    line_of,
    padding_of,
    train_in_float32,
)
from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import Rows, document_lengths, fetch, load_split
from docml_trainer.data.shapes import LABELS
from docml_trainer.errors import DataError, TrainingError, UserCodeError
from docml_trainer.functions import Context, UserFunctions
from docml_trainer.training.checkpoint import Checkpoints
from docml_trainer.training.optimization import DocumentLoss, build_optimizer


@dataclass(frozen=True)
class TrainingRequest:
    """What is asked for. `values`: all hyperparameters, those of a tuning's trial included; `settings`: the loop's own among them."""

    folders: Folders
    spec: JobSpec
    task: TrainTask
    values: Mapping[str, Any]
    settings: TrainingHyperparameters
    is_trial: bool  # of a tuning

    @classmethod
    def read(cls, folders: Folders) -> "TrainingRequest":
        """From the job's folder. BadHyperparameter names every value that is wrong."""
        spec = folders.spec()
        values = {**spec.hyperparameters, **folders.hyperparameters(spec.tuning.ranges if spec.tuning else None)}
        is_trial = TUNING_OBJECTIVE in values
        values.pop(TUNING_OBJECTIVE, None)
        return cls(folders, spec, folders.train_task(), values, check(values), is_trial)


class Processes:
    """The processes that train together, and this one's place among them."""

    def __init__(self, settings: TrainingHyperparameters) -> None:
        self.settings = settings
        self.accelerator = build_accelerator(settings)
        self.count: int = self.accelerator.num_processes
        self.index: int = self.accelerator.process_index
        self.is_main: bool = self.accelerator.is_main_process
        self.device: torch.device = self.accelerator.device

    def to_device(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch where the model is."""
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def sum(self, value: torch.Tensor, flag: bool) -> tuple[float, float]:
        """The sums of a number and a flag over all processes, equal in every one of them."""
        if self.count == 1:
            return float(value), float(flag)
        pair = torch.stack([value.to(self.device), torch.full_like(value, float(flag)).to(self.device)])
        first, second = self.accelerator.reduce(pair, "sum").tolist()
        return first, second

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            print(text, flush=True)


@dataclass(frozen=True)
class EncodedSplit:
    """A split's rows, and the length of each document (int64[documents], `document_lengths`)."""

    data: datasets.Dataset
    lengths: Rows

    @classmethod
    def load(cls, folder: Path, prefix: str) -> "EncodedSplit":
        """DataError if the split is missing or empty, or has labels that do not exist."""
        data = load_split(folder, prefix)
        known = len(data.features[LABELS].names)
        wrong = [(row, label) for row, label in enumerate(data[LABELS]) if label is None or not 0 <= label < known]
        if wrong:
            raise DataError(
                f"{folder}: {len(wrong)} of {len(data)} documents have a label that does not exist, row {wrong[0][0]} for example "
                f"{wrong[0][1]}; expected 0 to {known - 1}, the labels of the data set (prepare the data again)"
            )
        return cls(data, document_lengths(data, prefix))

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class TrainingSetup:
    """Request, processes, user functions, data, model, loss, optimizer, schedule and checkpoints of one training."""

    request: TrainingRequest
    processes: Processes
    functions: UserFunctions
    context: Context
    train: EncodedSplit
    valid: EncodedSplit
    collator: Callable[..., Collator]  # makes collators; takes the options that are not the training's own
    collate: Collator
    keys: tuple[str, ...]  # of ordered_input_keys
    classifier: Classifier  # for training: perhaps one of several processes
    bare: Classifier  # for validation: needs no other process
    loss: DocumentLoss
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    global_batch: int  # documents of an optimizer step
    identity: str
    checkpoints: Checkpoints

    @property
    def settings(self) -> TrainingHyperparameters:
        """The loop's own hyperparameters."""
        return self.request.settings

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every document is trained on once."""
        return -(-len(self.train) // self.global_batch)


def prepare_training(folders: Folders) -> TrainingSetup:
    """Read the job's folder, load data and model, and try the model on two documents.

    FolderError, BadHyperparameter, DataError or UserCodeError where something is not as it has to be.
    """
    request = TrainingRequest.read(folders)
    task, settings = request.task, request.settings
    processes = Processes(settings)
    prefix = column_prefix(task.model_name, task.model_names)
    train, valid = (EncodedSplit.load(folders.channel(name), prefix) for name in ("train", "valid"))
    check_several_labels(train)
    functions = UserFunctions.load(folders.user_functions)
    # All hyperparameters: load_model may want to know dropout-like settings of the platform's as well.
    context = Context.of(task.model_name, task.model_names, train.data.features[LABELS].names, request.values)
    accelerate.utils.set_seed(settings.seed)  # equal initial weights in every process
    model = load_model(functions, context, processes)
    bare = Classifier.of(model)
    collator = partial(
        Collator,
        train.data.features,
        padding_of(model, functions),
        prefix=prefix,
        forward_parameters=bare.parameters,
    )
    collate = collator(pad_to_multiple_of=8 if processes.device.type == "cuda" else None)
    keys = functions.ordered_input_keys(task.model_name, context)
    try_model(bare, collate, train, functions, keys, processes)
    if settings.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    global_batch = settings.train_batch_size * settings.gradient_accumulation_steps * processes.count
    optimizer, scheduler = build_optimizer(model, settings, -(-len(train) // global_batch) * settings.epochs)
    module, optimizer = processes.accelerator.prepare(model, optimizer)
    # A checkpoint of another spec, of other hyperparameters (a tuning's other trial) or of other steps is never taken.
    identity = digest([request.spec.spec_hash, request.values, global_batch])
    # Dropout differs between processes; everything else that is random does not depend on them.
    accelerate.utils.set_seed(settings.seed + processes.index)
    return TrainingSetup(
        request=request,
        processes=processes,
        functions=functions,
        context=context,
        train=train,
        valid=valid,
        collator=collator,
        collate=collate,
        keys=keys,
        classifier=bare.wrapped(module),
        bare=bare.wrapped(processes.accelerator.unwrap_model(module)),
        loss=DocumentLoss(settings, train.data[LABELS], context.num_labels),
        optimizer=optimizer,
        scheduler=scheduler,
        global_batch=global_batch,
        identity=identity,
        checkpoints=Checkpoints(folders.checkpoints, identity),
    )


def check_several_labels(train: EncodedSplit) -> None:
    """DataError if all training documents have one label: there is nothing to tell apart."""
    names = train.data.features[LABELS].names
    found = sorted({names[label] for label in train.data[LABELS]})
    if len(found) < 2:
        raise DataError(
            f"all {len(train)} training documents have the label {found[0]!r}; expected documents of at least two labels "
            "(look at LABELS_QUERY, IGNORED_LABELS and NUM_LABELS_THRESHOLD)"
        )


def load_model(functions: UserFunctions, context: Context, processes: Processes) -> torch.nn.Module:
    """The experimenter's model, fit to be trained. UserCodeError if it is not."""
    model = functions.load_model(context.model_name, context)
    check_trainable(model, functions)
    settings = processes.settings
    if settings.weights_dtype == "float32":
        stored = train_in_float32(model)
        if stored:
            processes.say(
                f"load_model returned weights in {', '.join(stored)}; they train in float32 "
                "(weights_dtype = as_loaded keeps them as they are)"
            )
    elif settings.mixed_precision == "fp16" and any(
        parameter.requires_grad and parameter.dtype == torch.float16 for parameter in model.parameters()
    ):
        raise UserCodeError(
            f"{line_of(functions)}: load_model returned float16 weights with mixed_precision = fp16 and weights_dtype = as_loaded; "
            "expected float32 weights under fp16 (leave weights_dtype out)"
        )
    return model.to(processes.device)


def try_model(
    bare: Classifier,
    collate: Collator,
    train: EncodedSplit,
    functions: UserFunctions,
    keys: Sequence[str],
    processes: Processes,
) -> None:
    """Ask the model about the two longest documents, and about the shortest beside the longest. UserCodeError if it is not fit."""
    order = np.argsort(train.lengths, kind="stable")
    longest = processes.to_device(collate(fetch(train.data, order[-2:])))
    check_model(bare, longest, len(train.data.features[LABELS].names), functions)
    check_keys(keys, collate.feature_names, bare, functions)

    def exported(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        return processes.to_device({key: batch[key] for key in keys})

    check_independence(bare, exported, fetch(train.data, order[[0, -1]]), functions)
    if processes.count > 1:
        check_all_parameters_used(bare, longest, functions)


def build_accelerator(settings: TrainingHyperparameters) -> accelerate.Accelerator:
    """On the GPU where there is one, in the precision that it supports."""
    on_gpu = torch.cuda.is_available()
    precision = settings.mixed_precision
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and not on_gpu:
        raise TrainingError("mixed_precision = fp16 needs a GPU, and there is none; expected auto, fp32 or bf16")
    return accelerate.Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=not on_gpu)


def enable_gradient_checkpointing(model: torch.nn.Module) -> None:
    """Of the transformers model that it is, or of those that it is made of."""
    found: list[str] = []
    for name, module in model.named_modules():
        if hasattr(module, "activation_checkpointing_enable") and not any(_is_part(name, outer) for outer in found):
            module.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            found.append(name)
    if not found:
        print(
            f"gradient_checkpointing is on, and {type(model).__name__} does not support it: training goes on without."
        )


def _is_part(name: str, outer: str) -> bool:
    """Whether the module called so lies in the one called `outer`, by the names of `named_modules`."""
    return not outer or name.startswith(f"{outer}.")
