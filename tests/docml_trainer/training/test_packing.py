"""Encoders that compute on documents end to end: the same logits and gradients, in few graphs."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from docml_trainer.data.classifier import Classifier
from docml_trainer.training.acceleration import MAX_GRAPHS, compile_layers, forget_compilation, repeated_layers
from docml_trainer.training.packing import PACKED_BOUNDS, PACKED_ROWS, Packing
from docml_trainer.training.recording import MULTIPLE

SIZES: dict[str, Any] = {"vocab_size": 60, "num_labels": 3, "pad_token_id": 0}
CONFIGS = {
    "bert": transformers.BertConfig(
        **SIZES, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    ),
    "distilbert": transformers.DistilBertConfig(**SIZES, dim=32, n_layers=2, n_heads=2, hidden_dim=64),
}


def batch(*lengths: int) -> dict[str, torch.Tensor]:
    """Random documents of these lengths."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, 60, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(len(lengths)) % 3}


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_have_the_logits_and_gradients_of_padded_ones(name: str) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(CONFIGS[name]).eval()
    classifier, documents = Classifier.of(model), batch(24, 7, 13, 1)
    packing = Packing.find(model, longest=24)
    assert packing is not None

    def gradients(documents: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        model.zero_grad()
        classifier(documents, with_labels=True).loss.backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    padded, padded_gradients = classifier.logits(documents), gradients(documents)
    packing.apply()
    seen: list[tuple[int, ...]] = []
    repeated_layers(model)[0].register_forward_pre_hook(lambda _, positional: seen.append(tuple(positional[0].shape)))

    packed = classifier.logits(packing.take(packing.plan(documents)))
    assert seen == [(1, MULTIPLE, 32)], "45 tokens and a filling, instead of 4 × 24"
    assert torch.allclose(packed, padded, atol=1e-6)
    for ours, theirs in zip(gradients(packing.take(packing.plan(documents))), padded_gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(classifier.logits(packing.take(documents)), padded, atol=1e-6), "without a plan: padded"
    packing.remove()
    assert torch.equal(classifier.logits(documents), padded), "the model is as it was"


def test_documents_that_are_not_padded_at_their_ends_have_no_plan() -> None:
    documents = batch(5, 3)
    documents["attention_mask"][0, 1] = 0
    packing = Packing.find(transformers.BertForSequenceClassification(CONFIGS["bert"]), longest=8)
    assert packing is not None
    assert packing.plan(documents) is documents
    whole = packing.plan(batch(8, 8))
    assert PACKED_ROWS not in whole
    assert whole[PACKED_BOUNDS].tolist() == [0, 8, 16, 16]


def test_a_plan_for_a_recording_fills_up_to_its_size() -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(CONFIGS["bert"]).eval()
    classifier, packing = Classifier.of(model), Packing.find(model, longest=64)
    assert packing is not None
    documents, many, long = batch(60, 7, 33), batch(*[3] * 6), batch(*[64] * 4)
    padded = classifier.logits(documents)
    packing.apply()
    packing.record(documents=3)
    assert packing.recordings is not None
    assert packing.recordings.sizes == [192, 128, 64]
    planned = packing.plan(documents, training=True)
    assert len(planned[PACKED_ROWS]) == 128
    assert planned[PACKED_BOUNDS].tolist() == [0, 60, 67, 100, 128, 128], "a filling, and an empty document"
    assert torch.allclose(classifier.logits(packing.take(planned)), padded, atol=1e-6)
    for other in (many, long):
        assert len(packing.plan(other, training=True)[PACKED_BOUNDS]) == len(other["labels"]) + 2, (
            "more than is recorded"
        )
    assert packing.plan(documents)[PACKED_BOUNDS].tolist() == [0, 60, 67, 100, 128], "of validation nothing is recorded"
    packing.longest = 20
    assert packing.plan(batch(9, 5, 3))[PACKED_BOUNDS].tolist() == [0, 9, 14, 17, 37, 57, 64], "no filling is longer"
    packing.remove()
    assert packing.recordings is None


def test_models_that_are_not_known_to_take_it() -> None:
    assert Packing.find(torch.nn.Linear(2, 2), 8) is None
    small = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2, n_positions=64, pad_token_id=0)
    assert Packing.find(transformers.GPT2ForSequenceClassification(small), 8) is None


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the tracer's own
def test_a_few_graphs_serve_every_shape() -> None:
    model = transformers.AutoModelForSequenceClassification.from_config(CONFIGS["bert"])
    classifier, packing = Classifier.of(model), Packing.find(model, longest=64)
    assert packing is not None
    packing.apply()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert compile_layers(model, backend="eager") == 2
    random = np.random.default_rng(0)
    for _ in range(12):
        lengths = random.integers(2, 64, int(random.integers(2, 9))).tolist()
        classifier(packing.take(packing.plan(batch(*lengths))), with_labels=True).loss.backward()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    forget_compilation(model)
    packing.remove()
    assert 1 <= graphs <= MAX_GRAPHS
