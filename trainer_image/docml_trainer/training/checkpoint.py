"""Checkpoints that survive a machine going away at any moment.

    checkpoints/<identity>/
      step-00000120/      model.safetensors, state.pt (optimizer, scheduler, scaler, random states), progress.json, MANIFEST.json
      best-00002.safetensors    weights of the best epoch so far, named in progress.json with its sha256

A checkpoint is a folder that is written under another name and renamed when it is whole; its manifest lets a reader find out a partial
sync. The last two are kept. `identity` stands for the spec, the hyperparameters and the size of a step: a checkpoint of
another training is never used.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model

from docml_contract.manifests import sha256_file, write_atomically
from docml_contract.names import MANIFEST

MODEL, STATE, PROGRESS = "model.safetensors", "state.pt", "progress.json"
KEPT = 2
# One epoch: epoch (from 1), train_loss, valid_loss, valid_accuracy, valid_f1, learning_rate (of the base), gradient_norm (largest,
# before clipping), step_losses, and what depends on the machine: seconds, examples_per_second, tokens_per_second, memory_mb.
EpochRecord = dict[str, Any]


@dataclass
class TrainingProgress:
    """How far a training is. All of it is in a checkpoint."""

    epoch: int = 0  # finished ones
    step: int = 0  # optimizer steps done in the epoch that runs
    total_steps: int = 0
    step_losses: list[float] = field(default_factory=list)  # of the epoch that runs
    step_documents: list[int] = field(default_factory=list)
    gradient_norm: float = 0.0  # the largest of the epoch that runs
    records: list[EpochRecord] = field(default_factory=list)
    best: EpochRecord | None = None  # the best epoch's record, with `file` and `sha256` of its weights
    epochs_without_better: int = 0
    seconds: float = 0.0  # of training and validation, over all attempts


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    progress: dict[str, Any]

    @property
    def name(self) -> str:
        """`step-00000120`: sorts by optimizer step."""
        return self.folder.name

    def load_model(self, model: torch.nn.Module) -> None:
        """Put the checkpoint's weights into `model`."""
        load_model(model, self.folder / MODEL)

    def load_state(self) -> dict[str, Any]:
        """What `save` was given; tensors on the CPU, no pickled code."""
        state: dict[str, Any] = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        return state


class Checkpoints:
    """The checkpoints of one training, identified by `identity` (64 hex digits)."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.identity = identity
        self.folder = folder / identity[:16]

    def save(self, step: int, model: torch.nn.Module, state: dict[str, Any], progress: dict[str, Any]) -> Path:
        """Write the checkpoint of optimizer step `step`, then remove all but the last two."""
        final = self.folder / f"step-{step:08d}"
        draft = self.folder / f".{final.name}.part"
        for folder in (draft, final):
            shutil.rmtree(folder, ignore_errors=True)
        draft.mkdir(parents=True)
        save_model(model, str(draft / MODEL))
        torch.save(state, draft / STATE)
        (draft / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        names = (MODEL, STATE, PROGRESS)
        entries = {name: {"size": (draft / name).stat().st_size, "sha256": sha256_file(draft / name)} for name in names}
        for name in names:
            _flush(draft / name)
        write_atomically(draft / MANIFEST, json.dumps({"identity": self.identity, "files": entries}).encode())
        draft.rename(final)
        _flush(self.folder)
        self._remove_old()
        return final

    def save_best(self, epoch: int, model: torch.nn.Module) -> dict[str, str]:
        """Keep the weights of an epoch; the result goes into `progress["best"]`, which protects the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"best-{epoch:05d}.safetensors"
        draft = path.with_name(f".{path.name}.part")
        save_model(model, str(draft))
        _flush(draft)
        draft.replace(path)
        return {"file": path.name, "sha256": sha256_file(path)}

    def load_best(self, best: dict[str, Any], model: torch.nn.Module) -> None:
        """Put the best epoch's weights into `model`."""
        load_model(model, self.folder / best["file"])

    def names(self) -> list[str]:
        """Names of the checkpoints that are whole, newest first. What fails its manifest is said and passed over."""
        whole = []
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            problem = self._problem(folder)
            if problem is None:
                whole.append(folder.name)
            else:
                print(f"Checkpoint {folder.name} is not used: {problem}", flush=True)
        return whole

    def open(self, name: str) -> Checkpoint:
        """One of `names()`."""
        folder = self.folder / name
        return Checkpoint(folder, json.loads((folder / PROGRESS).read_text(encoding="utf-8")))

    def _problem(self, folder: Path) -> str | None:
        """Why a checkpoint cannot be used, or None."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["identity"] != self.identity:
                return "it belongs to another training"
            for name, entry in manifest["files"].items():
                path = folder / name
                if path.stat().st_size != entry["size"] or sha256_file(path) != entry["sha256"]:
                    return f"{name} differs from its manifest"
            best = self.open(folder.name).progress["best"]
            if best is not None and sha256_file(self.folder / best["file"]) != best["sha256"]:
                return f"{best['file']} differs from its sha256"
        except FileNotFoundError as error:
            return f"{Path(str(error.filename)).name} is missing"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _remove_old(self) -> None:
        """Keep the last two checkpoints and the weights that they name; leftovers of a crash go."""
        folders = sorted(self.folder.glob("step-*"), reverse=True)
        for folder in (*folders[KEPT:], *self.folder.glob(".step-*.part")):
            shutil.rmtree(folder, ignore_errors=True)
        needed = set()
        for folder in folders[:KEPT]:
            try:
                needed.add((json.loads((folder / PROGRESS).read_text(encoding="utf-8"))["best"] or {}).get("file"))
            except (OSError, ValueError):
                continue  # a partial sync: it protects nothing
        for path in (*self.folder.glob("best-*.safetensors"), *self.folder.glob(".best-*.part")):
            if path.name not in needed:
                path.unlink(missing_ok=True)


def random_states() -> dict[str, Any]:
    """The states of this process' generators that a model may draw from."""
    kind, keys, *rest = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the generators where `random_states` found them."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def newest_common(mine: list[str], everyone: Callable[[list[str]], list[list[str]]]) -> str | None:
    """The newest checkpoint that every process has whole: hosts sync their folders each for itself."""
    common = set(mine).intersection(*everyone(mine))
    return max(common, default=None)


def _flush(path: Path) -> None:
    """Through to the disk, so that a rename cannot survive what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
