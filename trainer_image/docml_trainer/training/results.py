"""What a training reports: while it runs, a record an epoch, lines for people and events; in the end, the output folder."""

import json
import math
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.torch import save_model

from docml_contract import names
from docml_contract.hyperparameters import own
from docml_contract.log_lines import EPOCH, KEPT_METRICS, ProgressEvents, format_event, metric_line
from docml_contract.manifests import model_version, sha256_file, utc_now, write_output
from docml_trainer.container import hardware, peak_memory_mb
from docml_trainer.errors import TrainingError
from docml_trainer.export.parity import Samples
from docml_trainer.export.speedup import speed_up
from docml_trainer.export.trace import ExportResult, export
from docml_trainer.training.checkpoint import EpochRecord, TrainingProgress
from docml_trainer.training.setup import TrainingSetup
from docml_trainer.training.tracking import Tracker

PIPELINES = "transformers.pipelines"
if PIPELINES in sys.modules:
    import evaluate
else:  # for its evaluators, which nothing here needs, evaluate would load them: most of what a training's start takes
    sys.modules[PIPELINES] = None  # type: ignore[assignment]
    try:
        import evaluate
    finally:
        del sys.modules[PIPELINES]

SECONDS_BETWEEN_LINES = 10.0
TIMES = ("seconds", "examples_per_second", "tokens_per_second", "memory_mb")  # differ between equal trainings
Scored = tuple[int, int, int, float]  # a document's row id, predicted label, true label, cross-entropy
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "numpy", "safetensors")


def validation_metrics(found: Sequence[Scored], documents: int, epoch: int) -> dict[str, float]:
    """The validation's part of an epoch's record, each of the `documents` counted once by its row id. TrainingError if one lacks."""
    by_id = {row: rest for row, *rest in found}
    if len(by_id) != documents:
        raise TrainingError(f"validation scored {len(by_id)} of {documents} documents")
    predictions, labels, losses = zip(*(by_id[row] for row in sorted(by_id)), strict=True)
    scored, loss = scores(predictions, labels), float(np.mean(losses))
    if not math.isfinite(loss):
        raise TrainingError(f"the validation loss became {loss} in epoch {epoch} (lower learning_rate)")
    return {"valid_loss": loss, "valid_accuracy": scored["accuracy"], "valid_f1": scored["f1"]}


def is_better(record: EpochRecord, best: EpochRecord | None) -> bool:
    """Whether an epoch is to be kept instead of `best`: higher validation macro-F1, or as high a one at a lower loss."""
    if best is None:
        return True
    return (record["valid_f1"], -record["valid_loss"]) > (best["valid_f1"], -best["valid_loss"])


def kept_metrics(best: EpochRecord) -> dict[str, float]:
    """The validation metrics of the epoch that was kept."""
    return {name: best[name] for name in KEPT_METRICS}


def report_epoch(record: EpochRecord, best: EpochRecord, epochs: int) -> None:
    """Print an epoch: a line to read, the line that tuners read, and the event. `best` may be the epoch itself."""
    kept = "kept" if best["epoch"] == record["epoch"] else f"epoch {best['epoch']} stays the best"
    print(
        f"Epoch {record['epoch']}/{epochs}: training loss {record['train_loss']:.4f}, validation loss "
        f"{record['valid_loss']:.4f}, accuracy {record['valid_accuracy']:.4f}, macro-F1 {record['valid_f1']:.4f} ({kept}), "
        f"{record['examples_per_second']:.1f} documents a second, {record['memory_mb']:,.0f} MB"
    )
    own_metrics = {f"{name}_epoch": record[name] for name in KEPT_METRICS}
    metrics = {**kept_metrics(best), **own_metrics, "train_loss": record["train_loss"]}
    print(metric_line(metrics))
    rest = {name: record[name] for name in ("learning_rate", "gradient_norm", *TIMES)}
    print(format_event(EPOCH, epoch=record["epoch"], **metrics, **rest), flush=True)


class EpochLines:
    """A line and an event now and then while an epoch runs, and the speed of the part of it that this process saw."""

    def __init__(self, epoch: int, epochs: int, steps: int) -> None:
        self.epoch, self.epochs, self.steps = epoch, epochs, steps
        self.started = time.monotonic()
        self.documents = self.tokens = 0
        self.events = ProgressEvents(
            f"epoch {epoch} of {epochs}", steps, "steps", seconds_between=SECONDS_BETWEEN_LINES
        )

    @property
    def seconds(self) -> float:
        """Since the epoch, or the rest of it, began."""
        return max(time.monotonic() - self.started, 1e-9)

    def step(self, step: int, loss: float, learning_rate: float, documents: int, tokens: int) -> None:
        """After optimizer step `step` (from 1) on so many documents and tokens (of all processes)."""
        self.documents += documents
        self.tokens += tokens
        if not self.events.is_due():
            return
        print(
            f"Epoch {self.epoch}/{self.epochs}, step {step}/{self.steps}: loss {loss:.4f}, learning rate "
            f"{learning_rate:.3g}, {self.documents / self.seconds:.1f} documents a second"
        )
        self.events.print(step)

    def speed(self) -> dict[str, float]:
        """The record's fields that depend on the machine, at the end of an epoch's training."""
        return {
            "seconds": self.seconds,
            "examples_per_second": self.documents / self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "memory_mb": peak_memory_mb(),
        }


def plot_curves(records: Sequence[EpochRecord], best_epoch: int, title: str, path: Path) -> None:
    """curves.png: losses by step and epoch, validation scores, learning rate; the kept epoch is marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Beneath one another: as wide as Dagster's pages have room for.
    figure = Figure(figsize=(5.2, 8), layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores, rates = figure.subplots(3, 1)
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
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def write_results(
    setup: TrainingSetup,
    progress: TrainingProgress,
    model: torch.nn.Module,
    *,
    seconds: float,
    tracker: Tracker,
    then: Callable[[], None] = lambda: None,
) -> None:
    """The best epoch's weights, their TorchScript, and everything that is said about them; OUTPUT.json last.

    model: bare, on the CPU, with the weights of the best epoch. seconds: of this attempt. tracker: whose offline runs are kept.
    then: what is done when all of it is there, before OUTPUT.json says so. ExportError if the TorchScript model is not the trained one.
    """
    task, best, output = setup.request.task, progress.best, setup.request.folders.output
    assert best is not None
    for leftover in output.iterdir():  # of an attempt that was killed
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    save_model(model, str(output / names.WEIGHTS))
    exported = export_model(setup, model, output / names.TORCHSCRIPT)
    _write_json(output / names.EXPORT, exported.content)
    _write_json(output / names.HISTORY, progress.records)
    title = f"{task.experiment}, run {task.run}: {task.model_name}"
    plot_curves(progress.records, best["epoch"], title, output / names.CURVES)
    card = model_card(setup, progress, model, exported) | {
        "duration": {"training_seconds": progress.seconds, "this_attempt_seconds": seconds}
    }
    _write_json(output / names.STATISTICS, card)
    tracker.keep_offline_runs(output)
    weights = sha256_file(output / names.WEIGHTS)
    facts = {
        **kept_metrics(best),
        "best_epoch": best["epoch"],
        "epochs": progress.epoch,
        "weights_sha256": weights,
        "torchscript_sha256": sha256_file(output / names.TORCHSCRIPT),
        "parameters": card["parameters"]["total"],
        "fixed_shape": exported.content["fixed_shape"],
        "seconds": round(progress.seconds, 1),
    }
    version_of_model = model_version({task.model_name: weights}, {task.model_name: exported.content})
    then()
    write_output(output, "train", version_of_model, facts, exclude=(names.INFERENCE,))


def export_model(setup: TrainingSetup, model: torch.nn.Module, path: Path) -> ExportResult:
    """The model as TorchScript at `path`, compared with it on documents of both splits."""
    longest = own(setup.request.values).get("max_length")
    samples = Samples(setup.collator, setup.train.data, setup.valid.data, longest if isinstance(longest, int) else None)
    exported = export(model, setup.keys, samples, setup.context.labels, path)
    if setup.request.task.speedup is None:
        return exported
    return speed_up(exported, model, samples, path, lambda said, true: scores(said, true)["f1"])


def model_card(
    setup: TrainingSetup, progress: TrainingProgress, model: torch.nn.Module, exported: ExportResult
) -> dict[str, Any]:
    """statistics.json: where the model comes from, what it is, what it was trained with and on."""
    request, best = setup.request, progress.best
    assert best is not None
    parameters = list(model.parameters())
    return {
        "experiment": request.task.experiment,
        "run": request.task.run,
        "model": request.task.model_name,
        "created_at": utc_now(),
        "data_versions": request.spec.inputs,
        "provenance": request.spec.provenance,
        "labels": list(setup.context.labels),
        "documents": {"train": len(setup.train), "valid": len(setup.valid)},
        "hyperparameters": request.settings.model_dump() | own(request.values),
        "best_epoch": best["epoch"],
        "epochs": progress.epoch,
        "scores": kept_metrics(best),
        "parameters": {
            "total": sum(parameter.numel() for parameter in parameters),
            "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        },
        "export": {
            "tolerance": exported.content["tolerance"],
            "fixed_shape": exported.content["fixed_shape"],
            "relative_difference": exported.errors,
            **({"speedup": exported.speedup} if exported.speedup else {}),
        },
        "environment": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        # On a CPU the last bits of the weights depend on the number of threads.
        "hardware": hardware()
        | {
            "processes": setup.processes.count,
            "threads_per_process": torch.get_num_threads(),
            "mixed_precision": setup.processes.accelerator.mixed_precision,
        },
    }


def _write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def scores(
    predictions: Sequence[int] | np.ndarray[Any, Any], references: Sequence[int] | np.ndarray[Any, Any]
) -> dict[str, float]:
    """`{"accuracy", "f1"}` of label ids against label ids; at least one document."""
    # A metric makes folders in its cache though it keeps everything in memory, and a user may have no home to write to.
    with tempfile.TemporaryDirectory() as cache:
        accuracy, f1 = (metric(keep_in_memory=True, cache_dir=cache) for metric in (Accuracy, MacroF1))
        return {
            **accuracy.compute(predictions=predictions, references=references),
            **f1.compute(predictions=predictions, references=references),
        }


class LabelMetric(evaluate.Metric):
    """A metric of predicted label ids against true ones; its docstring is its description."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="predictions, references: label ids",
            features=datasets.Features({"predictions": ids, "references": ids}),
        )


class Accuracy(LabelMetric):
    """`compute(predictions=ids, references=ids) -> {"accuracy": float}`: the share of predictions that are right."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


class MacroF1(LabelMetric):
    """`compute(predictions=ids, references=ids) -> {"f1": float}`.

    The mean over labels with support; a label that is never predicted has F1 0. Equal to scikit-learn's
    `f1_score(references, predictions, labels=np.unique(references), average="macro", zero_division=0)`.
    """

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predicted, truth = np.asarray(predictions), np.asarray(references)
        labels = np.unique(truth)
        hits = np.array([np.sum((predicted == label) & (truth == label)) for label in labels])
        support = np.array([np.sum(truth == label) for label in labels])
        claimed = np.array([np.sum(predicted == label) for label in labels])
        return {"f1": float(np.mean(2 * hits / (support + claimed)))}
