"""What a training is made of, put together from the job's folder before the first step."""

from functools import partial

import accelerate
import numpy as np
import torch

from docml_contract.base import digest
from docml_contract.hyperparameters import TUNING_OBJECTIVE, TrainingHyperparameters, check
from docml_contract.names import column_prefix
from docml_trainer.data.classifier import Classifier, check_all_parameters_used, check_model
from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import document_lengths, fetch, load_split
from docml_trainer.data.shapes import LABELS
from docml_trainer.errors import TrainingError
from docml_trainer.folders import Folders
from docml_trainer.functions import Context, UserFunctions
from docml_trainer.training.checkpoint import Checkpoints
from docml_trainer.training.loss import DocumentLoss
from docml_trainer.training.optimization import build_optimizer


class Parts:
    """Data, model, loss, optimizer, schedule, checkpoints, and the processes that share the work."""

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self.spec = folders.spec()
        self.task = folders.train_task()
        searched = self.spec.tuning.ranges if self.spec.tuning else None
        self.values = {**self.spec.hyperparameters, **folders.hyperparameters(searched)}
        self.is_trial = TUNING_OBJECTIVE in self.values  # of a tuning
        self.values.pop(TUNING_OBJECTIVE, None)
        self.settings: TrainingHyperparameters = check(self.values)
        self.accelerator = build_accelerator(self.settings)
        self.is_main = self.accelerator.is_main_process
        self.load_data()
        self.load_model()
        # A checkpoint of another spec, of other hyperparameters (a tuning's other trial) or of other steps is never taken.
        self.identity = digest([self.spec.spec_hash, self.values, self.global_batch])
        self.checkpoints = Checkpoints(folders.checkpoints, self.identity)

    def load_data(self) -> None:
        self.prefix = column_prefix(self.task.model_name, self.task.model_names)
        self.train_data = load_split(self.folders.channel("train"), self.prefix)
        self.valid_data = load_split(self.folders.channel("valid"), self.prefix)
        names = self.train_data.features[LABELS].names
        self.functions = UserFunctions.load(self.folders.user_functions)
        # All hyperparameters: load_model may want to know dropout-like settings of the platform's as well.
        self.context = Context.of(self.task.model_name, self.task.model_names, names, self.values)
        self.train_lengths = document_lengths(self.train_data, self.prefix)
        self.valid_lengths = document_lengths(self.valid_data, self.prefix)
        self.global_batch = (
            self.settings.train_batch_size * self.settings.gradient_accumulation_steps * self.accelerator.num_processes
        )
        self.steps_per_epoch = -(-len(self.train_data) // self.global_batch)

    def load_model(self) -> None:
        accelerate.utils.set_seed(self.settings.seed)  # equal initial weights in every process
        model = self.functions.load_model(self.task.model_name, self.context).to(self.accelerator.device)
        bare = Classifier.of(model)
        self.collator = partial(
            Collator,
            self.train_data.features,
            self.functions.padding,
            prefix=self.prefix,
            forward_parameters=bare.parameters,
        )
        self.collate = self.collator(pad_to_multiple_of=8 if self.accelerator.device.type == "cuda" else None)
        first = self.to_device(self.collate(fetch(self.train_data, np.argsort(self.train_lengths)[-2:])))
        check_model(bare, first, self.context.num_labels, self.functions)
        if self.accelerator.num_processes > 1:
            check_all_parameters_used(bare, first, self.functions)
        if self.settings.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        self.loss = DocumentLoss(self.settings, self.train_data[LABELS], self.context.num_labels)
        optimizer, self.scheduler = build_optimizer(model, self.settings, self.steps_per_epoch * self.settings.epochs)
        module, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.classifier = bare.wrapped(module)  # for training: perhaps one of several processes
        self.bare = bare.wrapped(self.accelerator.unwrap_model(module))  # for validation: needs no other process
        # Dropout differs between processes; everything else that is random does not depend on them.
        accelerate.utils.set_seed(self.settings.seed + self.accelerator.process_index)

    def to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}

    def sum_over_processes(self, value: torch.Tensor, flag: bool) -> tuple[float, float]:
        """The sums of a number and a flag, equal in every process."""
        if self.accelerator.num_processes == 1:
            return float(value), float(flag)
        pair = torch.stack(
            [value.to(self.accelerator.device), torch.full_like(value, float(flag)).to(self.accelerator.device)]
        )
        first, second = self.accelerator.reduce(pair, "sum").tolist()
        return first, second

    def say(self, text: str) -> None:
        if self.is_main:
            print(text, flush=True)


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
    """Where the model supports it (transformers' do)."""
    enable = getattr(model, "gradient_checkpointing_enable", None)
    if enable is None:
        print(
            f"gradient_checkpointing is on, and {type(model).__name__} does not support it: training goes on without."
        )
    else:
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
