"""On what a model runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from docml_trainer.inference import prediction
from docml_trainer.inference.model import ModelFiles, Predictor
from docml_trainer.inference.prediction import (
    BATCH_DOCUMENTS,
    BATCH_TOKENS,
    batches_by_length,
    on_best_device,
    sample_rows,
)
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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_row_is_in_one_batch_within_the_limits(device: str) -> None:
    lengths = np.random.default_rng(0).integers(1, 600, 1000)
    batches = batches_by_length(lengths, device)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    for rows in batches:
        assert len(rows) <= BATCH_DOCUMENTS[device]
        assert len(rows) * lengths[rows].max() <= BATCH_TOKENS[device]
    longest = [int(lengths[rows].max()) for rows in batches]
    assert longest == sorted(longest, reverse=True)


def test_little_is_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 513, 5000)
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in batches_by_length(lengths, "cpu"))
    assert padded < 1.02 * lengths.sum()


def test_a_document_beyond_the_limit_goes_alone() -> None:
    assert [rows.tolist() for rows in batches_by_length(np.array([3, 10_000]), "cpu")] == [[1], [0]]


def test_documents_without_tokens() -> None:
    assert [rows.tolist() for rows in batches_by_length(np.array([0, 0]), "cpu")] == [[0, 1]]


def test_a_fixed_batch() -> None:
    assert [rows.tolist() for rows in batches_by_length(np.array([1, 2, 3]), "cpu", fixed_batch=2)] == [[2, 1], [0]]


def test_a_sample_is_drawn_once_for_all() -> None:
    lengths = np.zeros(100, dtype=np.int64)
    assert sample_rows(lengths, 20).tolist() == sample_rows(lengths, 20).tolist()
    assert sample_rows(lengths[:3], 20).tolist() == [0, 1, 2]
