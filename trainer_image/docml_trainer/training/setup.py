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
from docml_contract.hyperparameters import DEFAULT_BATCH, TUNING_OBJECTIVE, TrainingHyperparameters, check
from docml_contract.jobs import JobSpec, TrainPart, TrainTask
from docml_contract.learning_curve import draw_part
from docml_contract.names import column_prefix
from docml_trainer.container import Folders
from docml_trainer.data.classifier import (
    Classifier,
    check_all_parameters_used,
    check_independence,
    check_keys,
    check_model,
    check_trainable,
    explained_model,
    line_of,
    padding_of,
    train_in_float32,
)
from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import Rows, document_lengths, fetch, load_split
from docml_trainer.data.shapes import LABELS
from docml_trainer.errors import DataError, UserCodeError
from docml_trainer.functions import Context, UserFunctions
from docml_trainer.training.acceleration import choose_batch, compile_if_asked, record_if_possible
from docml_trainer.training.checkpoint import Checkpoints
from docml_trainer.training.optimization import DocumentLoss, build_optimizer
from docml_trainer.training.packing import Packing, find_packing
from docml_trainer.training.processes import Processes


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

    def take(self, part: TrainPart | None) -> "EncodedSplit":
        """A part of the documents; all of them for None."""
        if part is None:
            return self
        rows = draw_part(np.array(self.data[LABELS]), part.divisor, part.index)
        return EncodedSplit(self.data.select(rows), self.lengths[rows])

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
    packing: Packing | None  # in force until the model is exported
    global_batch: int  # documents of an optimizer step
    micro_batch: int  # documents that a process takes of it at a time
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
    train = train.take(task.part)
    check_several_labels(train)
    functions = UserFunctions.load(folders.user_functions, folders.running_function)
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
    batch = DEFAULT_BATCH if settings.train_batch_size == "auto" else settings.train_batch_size
    share = batch * settings.gradient_accumulation_steps
    global_batch = share * processes.count
    steps = -(-len(train) // global_batch) * settings.epochs
    order = np.argsort(train.lengths, kind="stable")
    examples = collate(fetch(train.data, order[[0, -1]]))
    longest = max(int(split.lengths.max()) for split in (train, valid))
    packing = find_packing(bare, settings, processes, examples, longest)
    optimizer, scheduler = build_optimizer(model, settings, steps)
    module, optimizer = processes.accelerator.prepare(model, optimizer)

    def longest_documents(number: int, training: bool = False) -> dict[str, torch.Tensor]:
        batch = collate(fetch(train.data, order[-number:]))
        if packing is None:
            return processes.to_device(batch)
        return packing.take(processes.to_device(packing.plan(batch, training=training)))

    with explained_model(functions):
        micro_batch = choose_batch(bare, settings, processes, longest_documents, share)
        largest = partial(longest_documents, min(len(train), micro_batch))
        if compile_if_asked(bare, settings, processes, largest, steps * -(-share // micro_batch)) and packing:
            record_if_possible(bare, packing, processes, longest_documents, min(len(train), micro_batch))
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
        packing=packing,
        global_batch=global_batch,
        micro_batch=micro_batch,
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
