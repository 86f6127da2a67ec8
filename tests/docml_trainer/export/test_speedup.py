from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from docml_trainer.data.classifier import forward_parameters
from docml_trainer.data.collate import Collator
from docml_trainer.export import speedup
from docml_trainer.export.parity import Samples
from docml_trainer.export.speedup import Comparison, speed_up
from docml_trainer.export.trace import ExportResult, export
from docml_trainer.training.results import scores
from tests.docml_trainer.export.test_trace import KEYS, SMALL, load
from tests.docml_trainer.trainings import LABELS, split


@pytest.fixture
def model() -> torch.nn.Module:
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, max_position_embeddings=64, initializer_range=0.3)
    return transformers.BertForSequenceClassification(config).eval()


@pytest.fixture
def any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every machine, however slow it is in bfloat16."""
    monkeypatch.setattr(speedup, "computes_in_bfloat16", lambda: True)
    monkeypatch.setattr(speedup, "LEAST_GAIN", 0.0)


def sped_up(model: torch.nn.Module, folder: Path) -> tuple[ExportResult, bytes]:
    """What came of it, and the file in float32."""
    train, valid = split(40, 1, lengths=(3, 30)), split(60, 2, lengths=(3, 30))
    samples = Samples(partial(Collator, train.features, forward_parameters=forward_parameters(model)), train, valid)
    path = folder / "model.pt"
    plain = export(model, KEYS, samples, LABELS, path)
    before = path.read_bytes()
    return speed_up(plain, model, samples, path, lambda said, true: scores(said, true)["f1"]), before


@pytest.mark.usefixtures("any_speed")
def test_the_faster_file_takes_the_place(model: torch.nn.Module, tmp_path: Path) -> None:
    result, before = sped_up(model, tmp_path)
    assert result.speedup is not None
    assert (result.content["arithmetic"], result.speedup["used"]) == ("bfloat16", "bfloat16")
    assert (result.speedup["documents"], result.speedup["equal_labels"]) == (60, 60)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() != before
    fast = load(tmp_path)
    ids = torch.randint(1, 60, (5, 17))
    with torch.no_grad():
        found, expected = fast(ids, torch.ones_like(ids))["logits"], model(ids, torch.ones_like(ids)).logits
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.usefixtures("any_speed")
def test_float32_stays_where_labels_change(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.no_grad():  # labels that differ by less than bfloat16 can tell
        model.classifier.weight[1] = model.classifier.weight[0] * (1 + 1e-4)
        model.classifier.weight[2] = model.classifier.weight[0] * (1 - 1e-4)
    result, before = sped_up(model, tmp_path)
    assert (tmp_path / "model.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert "arithmetic" not in result.content
    assert result.speedup is not None
    assert result.speedup["used"] is None
    assert "of 60 validation documents get another label" in result.speedup["reason"]
    assert "the TorchScript model stays in float32" in capsys.readouterr().out


class OnlyFloat32(torch.nn.Module):
    """Refuses bfloat16, as a model does that makes float32 tensors of its own."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.last = torch.nn.Linear(3, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return {"logits": self.last(logits * torch.ones(3))}


@pytest.mark.usefixtures("any_speed")
def test_float32_stays_where_a_model_knows_nothing_else(model: torch.nn.Module, tmp_path: Path) -> None:
    result, before = sped_up(OnlyFloat32(model), tmp_path)
    assert (tmp_path / "model.pt").read_bytes() == before
    assert result.speedup is not None
    assert "torch.jit.trace raises RuntimeError" in result.speedup["reason"]


def test_float32_stays_on_a_cpu_without_bfloat16(
    model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speedup, "computes_in_bfloat16", lambda: False)
    result, before = sped_up(model, tmp_path)
    assert (tmp_path / "model.pt").read_bytes() == before
    assert result.speedup == {"used": None, "reason": "this machine's CPU does not compute in bfloat16"}


@pytest.mark.parametrize(
    ("changes", "objection"),
    [
        ({}, None),
        ({"equal_labels": 999}, None),
        ({"equal_labels": 998}, "2 of 1000 validation documents get another label"),
        ({"bfloat16_f1": 0.8991}, None),
        ({"bfloat16_f1": 0.8989}, "macro-F1 on the validation split falls from 0.9000 to 0.8989"),
        ({"bfloat16_f1": 0.95}, None),
        ({"bfloat16_seconds": 9.2}, "it is 1.09 times as fast here, and has to be 1.1"),
    ],
)
def test_what_speaks_against_it(changes: dict[str, Any], objection: str | None) -> None:
    same = {"documents": 1000, "equal_labels": 1000, "float32_f1": 0.9, "bfloat16_f1": 0.9}
    seconds = {"float32_seconds": 10.0, "bfloat16_seconds": 4.0}
    assert Comparison(**{**same, **seconds, **changes}).objection() == objection
