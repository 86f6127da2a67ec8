"""Loading and asking an exported model, in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from docml_trainer.errors import DataError, ModelFileError
from docml_trainer.inference.model import (
    CheckedModel,
    ModelFiles,
    Predictor,
    TorchScriptModel,
    make_tensors_on,
    softmax,
)
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


def test_a_model_traced_on_the_cpu_runs_on_another_device(tmp_path: Path) -> None:
    """A GPU is not at hand; torch's meta device computes shapes, and refuses tensors of another device as a GPU does."""
    module = predictor(tmp_path, Positional(bert())).model.module
    for part in module.modules():
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            part._c.setattr(name, tensor.detach().to("meta"))
    make_tensors_on(torch.device("meta"), module)
    ids = torch.ones(2, 7, dtype=torch.int64, device="meta")
    logits = module(ids, torch.ones_like(ids))["logits"]
    assert (logits.device.type, logits.shape) == ("meta", (2, len(LABELS)))


class OnGpu:
    """A stand-in for a GPU, which the machine that tests need not have: computes on the CPU, off by `error`."""

    device = torch.device("cuda")

    def __init__(self, model: TorchScriptModel, error: float | None) -> None:
        self.model, self.error, self.asked = model, error, 0
        self.files, self.collate = model.files, model.collate

    def __call__(self, rows: Any) -> Any:
        self.asked += 1
        if self.error is None:
            raise RuntimeError("Expected all tensors to be on the same device")
        return self.model(rows) + np.array([[self.error, 0, 0]])


@pytest.mark.parametrize(("error", "device"), [(0.0, "cuda"), (1e-5, "cuda"), (0.5, "cpu"), (None, "cpu")])
def test_the_first_answers_decide_where_a_model_runs(tmp_path: Path, error: float | None, device: str) -> None:
    on_cpu = predictor(tmp_path, Positional(bert())).model
    on_gpu, objections, data = OnGpu(on_cpu, error), list[str](), split(10, seed=1)
    checked = CheckedModel(on_gpu, on_cpu, objections.append)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        checked([{}])  # what no device takes decides nothing
    assert (on_gpu.asked, objections) == (0, [])
    for number in range(3):
        expected = on_cpu([data[number]])
        assert np.abs(checked([data[number]]) - expected).max() < 1e-4
    assert checked.device.type == device
    assert on_gpu.asked == (3 if device == "cuda" else 1)
    assert len(objections) == (device == "cpu")
