"""What a training reports: a record an epoch, lines for people, events for the orchestrator, curves for both."""

import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from docml_contract.events import EPOCH, PROGRESS, format_event
from docml_contract.metrics import metric_line

# One epoch: epoch (from 1), train_loss, valid_loss, valid_accuracy, valid_f1, learning_rate (of the base), gradient_norm (largest,
# before clipping), step_losses, and what depends on the machine: seconds, examples_per_second, tokens_per_second, memory_mb.
Record = dict[str, Any]
SECONDS_BETWEEN_LINES = 10.0
TIMES = ("seconds", "examples_per_second", "tokens_per_second", "memory_mb")  # differ between equal trainings


def is_better(record: Record, best: Record | None) -> bool:
    """Whether an epoch is to be kept instead of `best`: higher validation macro-F1, or as high a one at a lower loss."""
    if best is None:
        return True
    return (record["valid_f1"], -record["valid_loss"]) > (best["valid_f1"], -best["valid_loss"])


def report_epoch(record: Record, best: Record, epochs: int) -> None:
    """Print an epoch: a line to read, the line that tuners read, and the event. `best` may be the epoch itself."""
    kept = "kept" if best["epoch"] == record["epoch"] else f"epoch {best['epoch']} stays the best"
    print(
        f"Epoch {record['epoch']}/{epochs}: training loss {record['train_loss']:.4f}, validation loss "
        f"{record['valid_loss']:.4f}, accuracy {record['valid_accuracy']:.4f}, macro-F1 {record['valid_f1']:.4f} ({kept}), "
        f"{record['examples_per_second']:.1f} documents a second, {record['memory_mb']:,.0f} MB"
    )
    metrics = {
        **{name: best[name] for name in ("valid_f1", "valid_accuracy", "valid_loss")},
        **{f"{name}_epoch": record[name] for name in ("valid_f1", "valid_accuracy", "valid_loss")},
        "train_loss": record["train_loss"],
    }
    print(metric_line(metrics))
    rest = {name: record[name] for name in ("learning_rate", "gradient_norm", *TIMES)}
    print(format_event(EPOCH, epoch=record["epoch"], **metrics, **rest), flush=True)


class ProgressLines:
    """A line now and then while an epoch runs, and the speed of the part of it that this process saw."""

    def __init__(self, epoch: int, epochs: int, steps: int) -> None:
        self.epoch, self.epochs, self.steps = epoch, epochs, steps
        self.started = self.said = time.monotonic()
        self.documents = self.tokens = 0

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.started, 1e-9)

    def step(self, step: int, loss: float, learning_rate: float, documents: int, tokens: int) -> None:
        """After optimizer step `step` (from 1) on so many documents and tokens (of all processes)."""
        self.documents += documents
        self.tokens += tokens
        if time.monotonic() - self.said < SECONDS_BETWEEN_LINES:
            return
        self.said = time.monotonic()
        print(
            f"Epoch {self.epoch}/{self.epochs}, step {step}/{self.steps}: loss {loss:.4f}, learning rate "
            f"{learning_rate:.3g}, {self.documents / self.seconds:.1f} documents a second"
        )
        what = f"epoch {self.epoch} of {self.epochs}"
        print(format_event(PROGRESS, what=what, done=step, total=self.steps, unit="steps"), flush=True)

    def speed(self) -> dict[str, float]:
        """The record's fields that depend on the machine, at the end of an epoch's training."""
        return {
            "seconds": self.seconds,
            "examples_per_second": self.documents / self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "memory_mb": peak_memory_mb(),
        }


def peak_memory_mb() -> float:
    """The most this process has had: of the GPU's memory where there is one, else of the machine's (Linux counts KiB)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def write_history(records: Sequence[Record], path: Path) -> None:
    """history.json: the list of epochs."""
    path.write_text(json.dumps(list(records), indent=2) + "\n", encoding="utf-8")


def plot_curves(records: Sequence[Record], best_epoch: int, title: str, path: Path) -> None:
    """curves.png: losses by step and epoch, validation scores, learning rate; the kept epoch is marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores, rates = figure.subplots(1, 3)
    epochs = [record["epoch"] for record in records]
    places, steps = [], []
    for record in records:
        count = len(record["step_losses"])
        places += [record["epoch"] - 1 + (index + 1) / count for index in range(count)]
        steps += record["step_losses"]
    losses.plot(places, steps, color="0.8", linewidth=1, label="training, by step")
    losses.plot(epochs, [record["train_loss"] for record in records], "o-", label="training")
    losses.plot(epochs, [record["valid_loss"] for record in records], "o-", label="validation")
    losses.set(title="Loss", xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))
    scores.plot(epochs, [record["valid_f1"] for record in records], "o-", label="macro-F1")
    scores.plot(epochs, [record["valid_accuracy"] for record in records], "o-", label="accuracy")
    scores.set(title="Validation", xlabel="epoch", ylim=(0, 1.02))
    rates.plot(epochs, [record["learning_rate"] for record in records], "o-", label="at the end of the epoch")
    rates.set(title="Learning rate", xlabel="epoch", ylim=(0, None))
    for axes in (losses, scores, rates):
        axes.axvline(best_epoch, color="0.5", linestyle=":", label=f"kept: epoch {best_epoch}")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110, metadata={"Software": None})
