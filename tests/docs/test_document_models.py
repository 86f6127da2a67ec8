"""The experiments of docs/document-models as they stand there, with small random weights where they name published ones."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from docml_assets.experiment.functions import check_functions
from docml_assets.experiment.settings.settings import Settings, parse_settings
from docml_contract.jobs import ExportedModel
from docml_contract.manifests import sha256_file
from docml_trainer.__main__ import main
from docml_trainer.data.classifier import Classifier, forward_parameters, padding_of
from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import fetch
from docml_trainer.functions import Context, UserFunctions
from tests.docml_trainer.inferences import write_spec
from tests.docml_trainer.jobfolder import JobFolder
from tests.docml_trainer.preparations import Doc, preparation
from tests.docml_trainer.trainings import run_here, training_job

FOLDER = Path(__file__).parents[2] / "docs/document-models"
EXPERIMENTS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**SMALL, "vocab_size": 60, "initializer_range": 0.2}
ROBERTA = {**TEXT, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
LABELS = ("invoice", "letter")


def lilt() -> Any:
    return transformers.LiltModel(transformers.LiltConfig(**ROBERTA, max_position_embeddings=514))


def layoutlmv3() -> Any:
    config = transformers.LayoutLMv3Config(**ROBERTA, coordinate_size=4, shape_size=4, max_position_embeddings=514)
    return transformers.LayoutLMv3Model(config)


def longformer() -> Any:
    config = transformers.LongformerConfig(**ROBERTA, attention_window=[4, 4], max_position_embeddings=4098)
    return transformers.LongformerModel(config)


def qwen3() -> Any:
    config = transformers.Qwen3Config(**TEXT, num_key_value_heads=1, head_dim=12)
    return transformers.Qwen3Model(config).to(torch.bfloat16)  # as it is published, and without pad_token_id


def minilm() -> Any:
    return transformers.BertModel(transformers.BertConfig(**TEXT, pad_token_id=1))


def dit() -> Any:
    return transformers.BeitModel(transformers.BeitConfig(**SMALL, use_relative_position_bias=True))


# What the folders name, and what takes its place. None: a tokenizer alone.
PUBLISHED: dict[str, Callable[[], Any] | None] = {
    "SCUT-DLVCLab/lilt-roberta-en-base": lilt,
    "FacebookAI/roberta-base": None,
    "microsoft/layoutlmv3-base": layoutlmv3,
    "allenai/longformer-base-4096": longformer,
    "Qwen/Qwen3-0.6B-Base": qwen3,
    "sentence-transformers/all-MiniLM-L6-v2": minilm,
    "microsoft/dit-base": dit,
}


def save_tokenizer(folder: Path) -> None:
    """Of the words w0 to w55, with <s> and </s> around a text."""
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | {f"w{n}": n + 4 for n in range(56)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def read_experiment(name: str, weights: Path) -> tuple[Settings, str]:
    """Its settings, and its functions with the names of published weights replaced by folders below `weights`."""
    settings = parse_settings((FOLDER / name / "settings.ini").read_text(), "settings.ini")
    text = (FOLDER / name / "user_defined_funcs.py").read_text()
    torch.manual_seed(1)
    for published, make in PUBLISHED.items():
        if f'"{published}"' in text:
            folder = weights / published.replace("/", "-")
            save_tokenizer(folder)
            if make:
                make().save_pretrained(folder)
            text = text.replace(f'"{published}"', f'"{folder}"')
    return settings, text


def document(number: int) -> Doc:
    """One to three pages; its words tell its label, and so does how dark it is."""
    random = np.random.default_rng(number)
    label = number % 2
    files: dict[str, bytes] = {}
    words: list[str] = []
    for page in range(1, 2 + number % 3):
        mine = [f"w{n}" for n in random.integers(28 * label, 28 * label + 28, random.integers(1, 12))]
        low = random.integers(0, 500, (len(mine), 2))
        boxes = np.hstack([low, low + random.integers(0, 500, (len(mine), 2))]).tolist()
        files[f"page_{page}.json"] = json.dumps({"words": mine, "boxes": boxes}).encode()
        picture = io.BytesIO()
        Image.fromarray(random.integers(120 * label, 120 * label + 80, (40, 30, 3), dtype=np.uint8)).save(
            picture, "PNG"
        )
        files[f"page_{page}.png"] = picture.getvalue()
        words += mine
    files["words.json"] = files["page_1.json"]
    files["raw_text.json"] = json.dumps({"text": " ".join(words)}).encode()
    return Doc(f"doc-{number:03d}", LABELS[label], files=files)


def write_document(folder: Path, number: int, settings: Settings) -> dict[str, Path | list[Path]]:
    """What encode_data gets of a document."""
    folder.mkdir()
    for name, content in document(number).contents().items():
        (folder / name).write_bytes(content)
    return {
        entry: sorted(folder.glob(entry)) if "*" in entry else folder / entry for entry in settings.model_input_files
    }


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_document_alone_is_answered_as_beside_others(tmp_path: Path, name: str) -> None:
    settings, text = read_experiment(name, tmp_path / "weights")
    (tmp_path / "user_defined_funcs.py").write_text(text)
    assert check_functions(text, "user_defined_funcs.py") == []
    functions = UserFunctions.load(tmp_path / "user_defined_funcs.py")
    instances = [write_document(tmp_path / f"doc-{number}", number, settings) for number in range(4)]
    for model_name in settings.model_names:
        context = Context.of(model_name, settings.model_names, LABELS, settings.hyperparameters_of(model_name))
        assert functions.encode_data is not None
        rows = [functions.encode_data(instance, context) for instance in instances]
        features = functions.get_dataset_features(context)
        data = datasets.Dataset.from_list([row or {} for row in rows], features=features)
        model = functions.load_model(model_name, context).eval().float()
        collate = Collator(features, padding_of(model, functions), forward_parameters=forward_parameters(model))
        classifier = Classifier.of(model)
        with torch.no_grad():
            together = classifier.logits(collate(fetch(data, np.arange(4))))
            alone = torch.cat([classifier.logits(collate(fetch(data, np.array([row])))) for row in range(4)])
        assert together.shape == (4, len(LABELS))
        assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_encoded_trained_exported_and_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    settings, text = read_experiment(name, tmp_path / "weights")
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path / "preparation"))
    prepared = preparation(
        tmp_path / "preparation",
        [document(number) for number in range(40)],
        functions=text,
        model_names=settings.model_names,
        model_input_files=settings.model_input_files,
        own_hyperparameters=settings.own_hyperparameters,
        model_hyperparameters=settings.own_model_hyperparameters,
        split=settings.split,
    )
    assert main(["prepare"]) == 0, prepared.failure
    inference = JobFolder(tmp_path / "inference", "infer")
    (inference.folders.channel("test").parent).mkdir(parents=True, exist_ok=True)
    inference.folders.channel("test").symlink_to(prepared.output / "test")
    exported = {}
    for model in settings.model_names:
        values = settings.hyperparameters_of(model) | {"epochs": 1, "train_batch_size": 4}
        job = training_job(
            tmp_path / model, text, model=model, models=settings.model_names, hyperparameters=values,
            splits=prepared.output,
        )  # fmt: skip
        assert run_here(job, monkeypatch) == 0, job.failure
        (inference.channel("models") / model).symlink_to(job.output)
        hashes = [sha256_file(job.output / file) for file in ("model.pt", "export.json")]
        exported[model] = ExportedModel(path=model, torchscript_sha256=hashes[0], export_sha256=hashes[1])
    write_spec(inference, exported)
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(inference.base))
    assert main(["infer"]) == 0, inference.failure
    rows = pq.read_table(inference.output / "documents.parquet").to_pylist()
    assert len(rows) == 4
    for model in settings.model_names:
        assert all(np.isclose(sum(row[f"{model}_probabilities"]), 1) for row in rows)
