import pytest
import torch
import transformers

from docml_contract.hyperparameters import TrainingHyperparameters
from docml_trainer.training.optimization import build_optimizer, head_parameters, parameter_groups


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
