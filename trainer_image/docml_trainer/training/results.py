"""What a finished training leaves in its output folder."""

import json
import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_model

from docml_contract import names
from docml_contract.hyperparameters import own
from docml_contract.manifests import sha256_file, utc_now, write_output
from docml_contract.versions import model_version
from docml_trainer.export.parity import Samples
from docml_trainer.export.trace import Exported, export
from docml_trainer.training.history import Record, plot_curves, write_history

if TYPE_CHECKING:
    from docml_trainer.train import Training

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "numpy", "safetensors")
SCORES = ("valid_f1", "valid_accuracy", "valid_loss")


def write(training: "Training", *, seconds: float, tracked: Sequence[Path]) -> None:
    """The best epoch's weights, their TorchScript, and everything that is said about them; OUTPUT.json last.

    seconds: of this attempt. tracked: folders of tracking runs to keep. ExportError if the TorchScript model is not the trained one.
    """
    output = training.folders.output
    model, best = training.best_model(), training.progress.best
    assert best is not None
    for leftover in output.iterdir():  # of an attempt that was killed
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    save_model(model, str(output / names.WEIGHTS))
    exported = _export(training, model, output / names.TORCHSCRIPT)
    _write_json(output / names.EXPORT, exported.content)
    records = training.progress.records
    write_history(records, output / names.HISTORY)
    title = f"{training.task.experiment}, run {training.task.run}: {training.task.model_name}"
    plot_curves(records, best["epoch"], title, output / names.CURVES)
    card = statistics(training, model, exported, seconds)
    _write_json(output / names.STATISTICS, card)
    for folder in tracked:
        shutil.copytree(folder, output / "wandb" / folder.name, symlinks=True)
    weights = sha256_file(output / names.WEIGHTS)
    facts = {
        **best_scores(best),
        "best_epoch": best["epoch"],
        "epochs": training.progress.epoch,
        "weights_sha256": weights,
        "torchscript_sha256": sha256_file(output / names.TORCHSCRIPT),
        "parameters": card["parameters"]["total"],
        "fixed_shape": exported.content["fixed_shape"],
        "seconds": round(training.progress.seconds, 1),
    }
    model_name = training.task.model_name
    write_output(output, "train", model_version({model_name: weights}, {model_name: exported.content}), facts)


def best_scores(best: Record) -> dict[str, float]:
    """The validation scores of the epoch that was kept."""
    return {name: best[name] for name in SCORES}


def _export(training: "Training", model: torch.nn.Module, path: Path) -> Exported:
    keys = training.functions.ordered_input_keys(training.task.model_name, training.context)
    longest = own(training.values).get("max_length")
    samples = Samples(
        training.collator,
        training.train_data,
        training.valid_data,
        longest if isinstance(longest, int) else None,
    )
    return export(model, keys, samples, training.context.labels, path)


def statistics(training: "Training", model: torch.nn.Module, exported: Exported, seconds: float) -> dict[str, Any]:
    """The model card: where the model comes from, what it is, what it was trained with and on."""
    best = training.progress.best
    assert best is not None
    parameters = list(model.parameters())
    return {
        "experiment": training.task.experiment,
        "run": training.task.run,
        "model": training.task.model_name,
        "created_at": utc_now(),
        "data_versions": training.spec.inputs,
        "provenance": training.spec.provenance,
        "labels": list(training.context.labels),
        "documents": {"train": len(training.train_data), "valid": len(training.valid_data)},
        "hyperparameters": training.settings.model_dump() | own(training.values),
        "best_epoch": best["epoch"],
        "epochs": training.progress.epoch,
        "scores": best_scores(best),
        "parameters": {
            "total": sum(parameter.numel() for parameter in parameters),
            "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        },
        "duration": {"training_seconds": training.progress.seconds, "this_attempt_seconds": seconds},
        "export": {
            "tolerance": exported.content["tolerance"],
            "fixed_shape": exported.content["fixed_shape"],
            "relative_difference": exported.errors,
        },
        "environment": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "hardware": hardware(training.accelerator.num_processes, training.accelerator.mixed_precision),
    }


def hardware(processes: int, precision: str) -> dict[str, Any]:
    """What the training ran on, and in how many threads: on a CPU the last bits of the weights depend on it."""
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": processes,
        "threads_per_process": torch.get_num_threads(),
        "mixed_precision": precision,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
