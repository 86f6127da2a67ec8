import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from docml_contract.hyperparameters import TrainingHyperparameters
from docml_trainer.training.loss import DocumentLoss

LABELS = [0, 0, 0, 0, 1, 1, 2, 0]
LOGITS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", ["none", "balanced"])
def test_sums_over_micro_batches_make_torchs_mean(smoothing: float, weighted: str) -> None:
    settings = TrainingHyperparameters.model_validate({"label_smoothing": smoothing, "class_weights": weighted})
    loss = DocumentLoss(settings, LABELS, 3)
    labels = torch.tensor(LABELS)
    parts = [loss({"logits": LOGITS[rows]}, labels[rows]) for rows in (slice(0, 3), slice(3, 8))]
    found = sum(parts) / loss.weight_of(np.arange(8))
    weight = (
        torch.from_numpy(compute_class_weight("balanced", classes=np.arange(3), y=LABELS))
        if weighted != "none"
        else None
    )
    expected = functional.cross_entropy(LOGITS, labels, weight=weight, label_smoothing=smoothing)
    assert float(found) == pytest.approx(float(expected), abs=1e-12)


def test_the_models_own_loss_is_taken_unless_it_cannot_know_what_is_asked() -> None:
    output = {"logits": LOGITS, "loss": torch.tensor(7.0)}
    labels = torch.tensor(LABELS)
    assert float(DocumentLoss(TrainingHyperparameters(), LABELS, 3)(output, labels)) == 56
    smoothed = DocumentLoss(TrainingHyperparameters(label_smoothing=0.1), LABELS, 3)
    assert not smoothed.takes_models
    assert float(smoothed(output, labels)) != 56


def test_a_label_without_documents_weighs_nothing() -> None:
    loss = DocumentLoss(TrainingHyperparameters(class_weights="balanced"), [0, 0, 2], 3)
    assert loss.weights is not None
    assert loss.weights.tolist() == [0.75, 0, 1.5]


def test_half_precision_logits_are_summed_in_full() -> None:
    loss = DocumentLoss(TrainingHyperparameters(), LABELS, 3)
    assert loss({"logits": LOGITS.bfloat16()}, torch.tensor(LABELS)).dtype == torch.float32
