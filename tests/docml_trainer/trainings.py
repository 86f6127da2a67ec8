"""Small trainings: encoded splits of random documents, a spec, and models that learn from them in a second."""

import json
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from docml_contract.jobs import Compute, JobSpec, Tracking, TrainTask
from docml_trainer.__main__ import main
from docml_trainer.training.results import TIMES
from tests.docml_trainer.jobfolder import JobFolder

LABELS = ("letter", "invoice", "report")
WORDS = 60

# A bag of words, with dropout only where asked for.
BAG = """
import torch

PADDING = {"input_ids": 0}

class Bag(torch.nn.Module):
    def __init__(self, num_labels, dropout, dtype):
        super().__init__()
        self.embedding = torch.nn.Embedding(60, 8, padding_idx=0, dtype=dtype)
        self.dropout = torch.nn.Dropout(dropout)
        self.classifier = torch.nn.Linear(8, num_labels, dtype=dtype)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(2)
        pooled = (self.embedding(input_ids) * mask).sum(dim=1) / mask.sum(dim=1)
        return {"logits": self.classifier(self.dropout(pooled))}

def load_model(model_name, context):
    dtype = getattr(torch, context.hyperparameters.get("dtype", "float32"))
    return Bag(context.num_labels, context.hyperparameters.get("dropout", 0.0), dtype)

def ordered_input_keys(model_name, context):
    return ["input_ids", "attention_mask"]
"""

# Real architectures, randomly initialized.
TRANSFORMER = """
import transformers
transformers.utils.logging.set_verbosity_error()

def load_model(model_name, context):
    small = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                 num_labels=context.num_labels, pad_token_id=0)
    if model_name == "longformer":
        config = transformers.LongformerConfig(**small, attention_window=[4, 4], max_position_embeddings=66)
        return transformers.LongformerForSequenceClassification(config)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**small, max_position_embeddings=64))

def ordered_input_keys(model_name, context):
    return ["input_ids", "attention_mask"]
"""


def split(
    documents: int, seed: int, prefixes: tuple[str, ...] = ("",), lengths: tuple[int, int] = (3, 30)
) -> datasets.Dataset:
    """Documents of three kinds, each with words of its own among common ones; lengths are drawn from [low, high)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(LABELS), documents)
    rows = []
    for label in labels:
        length = int(random.integers(*lengths))
        common, own = random.integers(1, 30, length), random.integers(30 + 10 * label, 40 + 10 * label, length)
        rows.append(np.where(random.random(length) < 0.7, common, own).tolist())
    columns: dict[str, Any] = {f"{prefix}input_ids": rows for prefix in prefixes}
    features: dict[str, Any] = {name: datasets.List(datasets.Value("uint8")) for name in columns}
    features |= {"labels": datasets.ClassLabel(names=list(LABELS)), "artifact_guid": datasets.Value("string")}
    columns |= {"labels": labels.tolist(), "artifact_guid": [f"guid-{seed}-{index}" for index in range(documents)]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def training_job(
    base: Path,
    functions: str = BAG,
    *,
    hyperparameters: Mapping[str, Any] | None = None,
    documents: tuple[int, int] = (60, 30),
    model: str = "bag",
    models: tuple[str, ...] | None = None,
    splits: Path | None = None,
    **task: Any,
) -> JobFolder:
    """A job folder, ready to run. `splits`: a preparation's output, instead of random documents; `task`: fields of the TrainTask."""
    models = models or (model,)
    prefixes = tuple(f"{name}_" for name in models) if len(models) > 1 else ("",)
    job = JobFolder(base, "train")
    for name, count, seed in (("train", documents[0], 1), ("valid", documents[1], 2)):
        if splits:
            shutil.copytree(splits / name, job.channel(name), dirs_exist_ok=True)
        else:
            split(count, seed, prefixes).save_to_disk(str(job.channel(name)))
    tracking = Tracking(group="EXP-1", name=f"run_1-{model}", job_type="training")
    fields = {"tracking": tracking} | task
    spec = JobSpec(
        kind="training",
        experiment="EXP-1",
        run=1,
        step="training",
        model=model,
        task=TrainTask(experiment="EXP-1", run=1, model_name=model, model_names=models, **fields),
        hyperparameters={"epochs": 2, "learning_rate": 0.05, "train_batch_size": 8} | dict(hyperparameters or {}),
        channels=(),
        inputs={"encoded_splits": "0" * 64},
        provenance={"git_revision": "abc1234"},
        compute=Compute(instance_type="local"),
    )
    job.write_spec(spec, {"user_defined_funcs.py": functions})
    return job


def run_here(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> int:
    """The entry point in this process, where starting one would take longer than the training. Returns the exit code."""
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(job.base))
    handler = signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(
        1
    )  # as the processes that tests start: weights are equal to the last bit at equal numbers only
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return main(["train"])
    finally:
        signal.signal(signal.SIGTERM, handler)


def weights(job: JobFolder) -> dict[str, torch.Tensor]:
    """The trained weights."""
    return load_file(job.output / "model.safetensors")


def records(job: JobFolder) -> list[dict[str, Any]]:
    """history.json without what differs between equal trainings."""
    history = json.loads((job.output / "history.json").read_text())
    return [{name: value for name, value in record.items() if name not in TIMES} for record in history]
