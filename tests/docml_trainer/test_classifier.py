from types import SimpleNamespace
from typing import Any

import pytest
import torch

from docml_trainer.classifier import Classifier, find_logits, find_loss, forward_parameters, is_out_of_memory

BATCH = {"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3), "labels": torch.tensor([0, 1])}


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
    assert model.called_with == {"labels": False}
    classifier(BATCH, with_labels=True)
    assert model.called_with == {"labels": True}


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


def test_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
