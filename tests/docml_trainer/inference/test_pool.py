"""How many processes are worth it, and what happens when one of them dies."""

import os
from pathlib import Path

import numpy as np
import pytest

from docml_trainer.errors import TrainerError
from docml_trainer.inference import pool as pools
from docml_trainer.inference.model import ModelFiles
from docml_trainer.inference.pool import (
    WORTH_IT_SECONDS,
    available_memory,
    open_pool,
    predict_in_processes,
    processes_for,
)
from tests.docml_trainer.inferences import Positional, bert, write_model
from tests.docml_trainer.trainings import split

MANY = 10 * WORTH_IT_SECONDS


def test_processes_need_enough_work_cores_and_memory() -> None:
    assert processes_for(16, WORTH_IT_SECONDS / 2, 10_000_000, None) == 1
    assert processes_for(2, MANY, 10_000_000, None) == min(2, int(0.8 * available_memory() / 620e6))
    assert processes_for(16, MANY, int(available_memory()), None) == 1
    assert processes_for(16, 0.1, 10_000_000, 3) == 3


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    """As when the kernel kills one that takes too much memory."""
    split(10, seed=1).save_to_disk(str(tmp_path / "test"))
    expected = write_model(tmp_path / "models/tiny", Positional(bert()))
    files = ModelFiles.verify("tiny", tmp_path / "models", expected)
    with open_pool(1, tmp_path / "test") as workers:
        workers.executor.submit(os._exit, 9)
        with pytest.raises(TrainerError, match="one of 1 inference processes died while predicting with 'tiny'"):
            predict_in_processes(workers, files, "", [np.arange(10)], lambda _: None)


def test_a_model_that_cannot_be_loaded_ends_the_waiting(tmp_path: Path) -> None:
    split(10, seed=1).save_to_disk(str(tmp_path / "test"))
    expected = write_model(tmp_path / "models/tiny", Positional(bert()))
    files = ModelFiles.verify("tiny", tmp_path / "models", expected)
    (tmp_path / "models/tiny/model.pt").write_bytes(b"gone")
    with open_pool(2, tmp_path / "test") as workers, pytest.raises(RuntimeError, match="PytorchStreamReader"):
        predict_in_processes(workers, files, "", [np.arange(10)], lambda _: None)
    assert pools.START_SECONDS > 60  # nobody waited for that long
