"""Loading and asking an exported model, in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from docml_trainer.errors import DataError, ModelFileError
from docml_trainer.inference.model import ModelFiles, Predictor, softmax
from tests.docml_trainer.inferences import Positional, bert, write_model
from tests.docml_trainer.trainings import LABELS, split


def predictor(folder: Path, module: torch.nn.Module, **options: Any) -> Predictor:
    expected = write_model(folder / "models/tiny", module, **options)
    return Predictor(ModelFiles.verify("tiny", folder / "models", expected), split(10, seed=1), "", "cpu")


@pytest.mark.parametrize("outputs", ["dict", "tensor"])
def test_both_forms_of_output(tmp_path: Path, outputs: str) -> None:
    model = bert()
    logits = predictor(tmp_path, Positional(model, outputs))(np.array([4, 2]))
    for row, found in zip((4, 2), logits, strict=True):
        ids = torch.tensor([split(10, seed=1)[row]["input_ids"]], dtype=torch.int64)
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].numpy()
        assert np.abs(found - expected).max() < 1e-4


def test_a_model_with_other_outputs_than_its_labels(tmp_path: Path) -> None:
    ask = predictor(tmp_path, Positional(bert(num_labels=5)))
    with pytest.raises(
        DataError, match=r"found logits of shape \[2, 5\] for 2 documents, expected one row per document and 3 labels"
    ):
        ask(np.array([0, 1]))


def test_what_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="the TorchScript model returned tuple, expected logits"):
        predictor(tmp_path, Positional(bert(), "tuple"))(np.array([0]))


def test_softmax_of_large_logits() -> None:
    probabilities = softmax(np.array([[1000.0, 0.0, -1000.0], [1.0, 1.0, 1.0]], dtype=np.float32))
    assert probabilities == pytest.approx(np.array([[1, 0, 0], [1 / 3] * 3]))


def test_labels_and_fixed_batch(tmp_path: Path) -> None:
    files = predictor(tmp_path, Positional(bert()), fixed_shape=(3, 40)).files
    assert files.labels == LABELS
    assert files.fixed_batch == 3
