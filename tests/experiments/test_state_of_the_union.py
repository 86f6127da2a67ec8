"""The bundled experiment's own functions: the recipe for long documents that people copy."""

import json
import os
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from docml_assets.runs.preflight import validate
from docml_assets.sample import PRODUCTION_FILES
from docml_trainer.data.collate import Collator
from docml_trainer.functions import Context, UserFunctions

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "EXP-1-state-of-the-union"
LABELS = ("1790-1860", "1861-1932", "1933-1980", "1981-2020")


def context(model: str) -> Context:
    return Context.of(model, ("minilm", "bag-of-words"), LABELS, {"chunk_tokens": 128})


@pytest.fixture(scope="module")
def functions() -> UserFunctions:
    return UserFunctions.load(FOLDER / "user_defined_funcs.py")


@pytest.fixture(scope="module")
def module(functions: UserFunctions) -> ModuleType:
    return functions.module


def test_validates() -> None:
    assert validate(FOLDER, dict(os.environ)) == []


@settings(max_examples=200, deadline=None)
@given(count=st.integers(0, 3000), length=st.integers(3, 512))
def test_chunks_have_one_size_fit_and_leave_nothing_out(module: ModuleType, count: int, length: int) -> None:
    ids = list(range(1000, 1000 + count))
    chunks = module.cut(ids, length, first=[1], last=[2])
    assert len({len(chunk) for chunk in chunks}) == 1
    assert len(chunks[0]) <= length
    assert all(chunk[0] == 1 and chunk[-1] == 2 for chunk in chunks)
    assert sorted({token for chunk in chunks for token in chunk[1:-1]}) == ids
    assert (len(chunks) - 1) * (length - 2) < max(count, 1)  # no more of them than needed


@pytest.mark.parametrize("model", ["minilm", "bag-of-words"])
def test_documents_become_logits_whatever_their_neighbours(
    functions: UserFunctions, model: str, tmp_path: Path
) -> None:
    told = context(model)
    documents = [path / "raw_text.json" for path in sorted(PRODUCTION_FILES.iterdir())[:2]]
    documents.append(tmp_path / "raw_text.json")
    documents[-1].write_text(json.dumps({"text": "A short address."}), encoding="utf-8")
    assert functions.encode_data is not None
    encoded = [functions.encode_data({"raw_text.json": path}, told) for path in documents]
    features = functions.get_dataset_features(told)
    keys = functions.ordered_input_keys(model, told)
    collate = Collator(features, functions.padding, forward_parameters=keys)
    rows = [{name: value for name, value in row.items() if name in features} for row in encoded if row is not None]
    network = functions.load_model(model, told).eval()

    def logits(chosen: list[dict[str, list[int]]]) -> torch.Tensor:
        batch = collate(chosen)
        with torch.no_grad():
            said: torch.Tensor = network(*(batch[key] for key in keys))["logits"]
        return said

    together = logits(rows)
    assert together.shape == (3, 4)
    for index, row in enumerate(rows):
        torch.testing.assert_close(together[index], logits([row])[0], atol=1e-5, rtol=1e-4)


def test_training_reads_a_few_chunks_and_learns_in_the_upper_layers(
    functions: UserFunctions, module: ModuleType
) -> None:
    network = functions.load_model("minilm", context("minilm")).train()
    read: list[int] = []
    network.encoder.register_forward_pre_hook(
        lambda _, __, named: read.append(len(named["input_ids"])), with_kwargs=True
    )
    ids = torch.randint(1000, 2000, (2, 9, 16))
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0  # the second document has three chunks
    loss = network(ids, mask, labels=torch.tensor([0, 3]))["loss"]
    loss.backward()
    assert read == [module.TRAIN_CHUNKS + 3]
    learning = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[3] for name in learning if name.startswith("encoder.encoder.layer.")} == {"4", "5"}
    assert not any(name.startswith("encoder.embeddings") for name in learning)
