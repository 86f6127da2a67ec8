"""How many documents fit: from two measured micro-batches."""

import pytest
import torch

from docml_trainer.data.classifier import Classifier
from docml_trainer.training.acceleration import forward_and_backward, largest_batch


@pytest.mark.parametrize(
    ("available", "share", "expected"),
    [
        (1000, 64, 32),  # 50 + 20 × 47 fit, and 64 documents are two micro-batches of 32
        (10_000, 64, 64),
        (200, 64, 7),  # 7 fit: ten micro-batches of at most 7
        (10, 64, 1),  # not even one: the training says that memory is short
        (1000, 2, 2),  # too few to measure anything
    ],
)
def test_the_largest_micro_batch_that_fits(available: int, share: int, expected: int) -> None:
    measured: list[int] = []

    def peak_of(documents: int) -> int:
        measured.append(documents)
        return 50 + 20 * documents

    assert largest_batch(peak_of, available, share) == expected
    assert max(measured, default=0) <= min(8, share)


class Normed(torch.nn.Module):
    """A model that behaves otherwise in training: it draws random numbers, and its norm remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.classifier = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)
        self.trained_on: list[bool] = []

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.trained_on.append(self.training)
        found: torch.Tensor = self.classifier(torch.nn.functional.dropout(self.norm(values), training=self.training))
        return found


def test_what_is_measured_is_a_step_of_training_that_leaves_no_trace() -> None:
    model = Normed().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    forward_and_backward(
        Classifier.of(model), {"values": torch.randn(3, 4, generator=torch.Generator().manual_seed(1))}
    )
    assert model.trained_on == [True]
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
