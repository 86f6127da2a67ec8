"""The processes that train together, and the numbers that they find in a step."""

from collections.abc import Mapping
from dataclasses import dataclass

import accelerate
import torch

from docml_contract.hyperparameters import TrainingHyperparameters
from docml_trainer.data.datasets import Rows
from docml_trainer.errors import TrainingError


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

    def pinned(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch in memory that a GPU reads on its own."""
        if self.device.type != "cuda":
            return dict(batch)
        return {name: tensor.pin_memory() for name, tensor in batch.items()}

    def findings(self, loss: torch.Tensor, norm: torch.Tensor, flag: bool) -> "Findings":
        """A step's loss and flag, summed over all processes, and the norm of its gradient, equal in every one of them."""
        sums = torch.stack([loss, torch.full_like(loss, float(flag))])
        if self.count > 1:
            sums = self.accelerator.reduce(sums, "sum")
        return Findings(torch.cat([sums, norm.detach().to(sums).reshape(1)]))

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


class Findings:
    """Numbers on their way from where they were computed: a GPU need not wait until somebody reads them."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.Event() if values.is_cuda else None
        if self.arrived:
            self.arrived.record()

    def read(self) -> list[float]:
        """The numbers; waits for them if they are not there yet."""
        if self.arrived:
            self.arrived.synchronize()
        return [float(value) for value in self.values]


@dataclass(frozen=True)
class OptimizerStep:
    """A step that was taken, and what it found: read when the numbers are needed."""

    place: str
    number: int  # in its epoch, from 1
    rows: Rows
    learning_rate: float
    was_skipped: bool  # fp16's scaler found an overflow and takes a smaller scale
    findings: Findings  # loss, processes that were asked to stop, norm of the gradient


def build_accelerator(settings: TrainingHyperparameters) -> accelerate.Accelerator:
    """On the GPU where there is one, in the precision that it supports."""
    on_gpu = torch.cuda.is_available()
    precision = settings.mixed_precision
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and not on_gpu:
        raise TrainingError("mixed_precision = fp16 needs a GPU, and there is none; expected auto, fp32 or bf16")
    return accelerate.Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=not on_gpu)
