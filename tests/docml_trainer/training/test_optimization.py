import numpy as np
import pytest
import torch
import transformers
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from docml_contract.hyperparameters import TrainingHyperparameters
from docml_trainer.training.optimization import DocumentLoss, build_optimizer, head_parameters, parameter_groups

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


def bert() -> torch.nn.Module:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=3
    )
    return transformers.BertForSequenceClassification(config)


def test_the_head_of_a_transformers_model_is_what_lies_outside_its_base() -> None:
    assert head_parameters(bert()) == {"classifier.weight", "classifier.bias"}


def test_the_head_of_another_model_goes_by_its_name() -> None:
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(4, 4), "score": torch.nn.Linear(4, 2)})
    assert head_parameters(model) == {"score.weight", "score.bias"}


def test_groups() -> None:
    model = bert()
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    settings = TrainingHyperparameters(learning_rate=1e-3, head_learning_rate=1e-2, weight_decay=0.1)
    groups = parameter_groups(model, settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert "bert.embeddings.word_embeddings.weight" not in found
    assert len(found) == len(names) - 1
    assert found["classifier.weight"] == (1e-2, 0.1)
    assert found["classifier.bias"] == (1e-2, 0.0)
    assert found["bert.encoder.layer.0.attention.self.query.weight"] == (1e-3, 0.1)
    assert found["bert.encoder.layer.0.attention.output.LayerNorm.weight"] == (1e-3, 0.0)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "constant_with_warmup", "polynomial"])
def test_schedules(name: str) -> None:
    model = torch.nn.Linear(2, 2)
    settings = TrainingHyperparameters.model_validate({"learning_rate": 1.0, "lr_scheduler": name, "warmup_ratio": 0.2})
    optimizer, scheduler = build_optimizer(model, settings, 10)
    rates = []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0])
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    if name == "constant":
        assert rates == [1.0] * 10
    else:
        assert rates[:3] == [0.0, 0.5, 1.0]
        assert (rates[-1] == 1.0) == (name == "constant_with_warmup")
