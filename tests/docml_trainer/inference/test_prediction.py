"""On what a model runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from docml_trainer.inference import prediction
from docml_trainer.inference.model import ModelFiles, Predictor
from docml_trainer.inference.prediction import on_best_device
from tests.docml_trainer.inferences import Positional, bert, write_model
from tests.docml_trainer.trainings import split


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles.verify("tiny", tmp_path, write_model(tmp_path / "tiny", Positional(bert())))


class OnGpu(Predictor):
    """A stand-in for a GPU, which the machine that tests need not have: computes on the CPU, off by `error`."""

    error: float | None = 0.0

    def __init__(self, files: ModelFiles, data: Any, prefix: str, device: str) -> None:
        super().__init__(files, data, prefix, "cpu")
        self.asked = device

    def __call__(self, rows: Any) -> Any:
        if self.asked == "cuda" and self.error is None:
            raise RuntimeError("Expected all tensors to be on the same device")
        shift = np.array([[self.error, 0, 0]]) if self.asked == "cuda" else 0
        return super().__call__(rows) + shift


@pytest.mark.parametrize(("error", "chosen"), [(0.0, "cuda"), (1e-5, "cuda"), (0.5, "cpu"), (None, "cpu")])
def test_the_gpu_is_taken_if_it_answers_as_the_cpu(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch, error: float | None, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(OnGpu, "error", error)
    monkeypatch.setattr(prediction, "Predictor", OnGpu)
    found = on_best_device(files, split(10, seed=1), "", np.arange(5))
    assert isinstance(found, OnGpu)
    assert found.asked == chosen


def test_without_a_gpu(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert on_best_device(files, split(10, seed=1), "", np.arange(5)).device.type == "cpu"
