from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from docml_trainer.data.classifier import Classifier, check_model, find_logits, find_loss, forward_parameters
from docml_trainer.errors import UserCodeError
from docml_trainer.functions import UserFunctions

BATCH = {
    "input_ids": torch.ones(2, 3),
    "attention_mask": torch.ones(2, 3),
    "labels": torch.tensor([0, 1]),
    "row_ids": torch.tensor([5, 6]),
}


class Recorder(torch.nn.Module):
    """Remembers what it was called with."""

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **rest: Any
    ) -> dict[str, torch.Tensor]:
        self.called_with = {"labels": labels is not None, **rest}
        return {"logits": input_ids}


class Insists(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=input_ids, loss=labels.sum())


def test_forward_gets_the_features_it_names() -> None:
    model = Recorder()
    assert forward_parameters(model) == ("input_ids", "labels")
    classifier = Classifier.of(model)
    classifier(BATCH, with_labels=False)
    assert model.called_with.keys() == {"labels", "attention_mask"}, (
        "what is not named goes into **rest, but not the row ids"
    )
    assert model.called_with["labels"] is False
    classifier(BATCH, with_labels=True)
    assert model.called_with["labels"] is True


def test_labels_go_to_a_forward_that_insists() -> None:
    classifier = Classifier.of(Insists())
    assert torch.equal(classifier.logits(BATCH), BATCH["input_ids"])


@pytest.mark.parametrize(
    "output", [{"logits": BATCH["labels"]}, SimpleNamespace(logits=BATCH["labels"]), BATCH["labels"]]
)
def test_logits_are_found(output: Any) -> None:
    assert find_logits(output) is BATCH["labels"]
    assert find_loss(output) is None


@pytest.mark.parametrize("output", [{"scores": 1}, (1, 2), None, {"logits": [1.0]}])
def test_what_are_no_logits(output: Any) -> None:
    assert find_logits(output) is None


class Changed(torch.nn.Module):
    """A linear model whose output something is done to."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"logits": self.change(input_ids * torch.tensor([0.5, 2.0, 1.0]))}


def test_probabilities_are_no_logits(tmp_path: Path) -> None:
    path = tmp_path / "user_defined_funcs.py"
    path.write_text("def load_model(model_name, context):\n    return model.softmax\n", encoding="utf-8")
    functions, batch = UserFunctions.load(path), {"input_ids": torch.ones(2, 3), "labels": torch.tensor([0, 1])}
    with pytest.raises(
        UserCodeError, match=r"line 2: return model.softmax: forward\(\) of the loaded model returned prob"
    ):
        check_model(Classifier.of(Changed(lambda x: x.softmax(-1))), batch, 3, functions)
    for change in (torch.log_softmax, lambda x, dim: x, lambda x, dim: torch.zeros_like(x)):
        check_model(Classifier.of(Changed(lambda x, change=change: change(x, dim=-1))), batch, 3, functions)
