"""Small inferences: a test split of random documents, and traced models in a job's folder."""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from docml_contract.jobs import Compute, ExportedModel, InferTask, JobSpec
from docml_contract.names import column_prefix
from tests.docml_trainer.jobfolder import JobFolder
from tests.docml_trainer.trainings import LABELS, split


class Positional(torch.nn.Module):
    """A classifier whose forward takes ids and mask in order."""

    def __init__(self, model: torch.nn.Module, outputs: str = "dict") -> None:
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return {"dict": {"logits": logits}, "tuple": (logits, logits * 0), "tensor": logits}[self.outputs]


def bert(seed: int = 0, num_labels: int = len(LABELS)) -> torch.nn.Module:
    """A random BERT whose answers differ clearly between documents."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=80,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=num_labels,
        initializer_range=0.5,
    )
    return transformers.BertForSequenceClassification(config).eval()


def write_model(
    folder: Path,
    module: torch.nn.Module,
    *,
    labels: Sequence[str] = LABELS,
    fixed_shape: tuple[int, int] | None = None,
    example: tuple[int, int] = (2, 10),
    **changes: Any,
) -> ExportedModel:
    """Trace the module into `folder` with its export.json; hashes as a manifest would have them."""
    folder.mkdir(parents=True)
    ids = torch.randint(1, 60, fixed_shape or example)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module.eval(), (ids, torch.ones_like(ids)), strict=False, check_trace=False)
        torch.jit.save(traced, str(folder / "model.pt"))
    keys = ["input_ids", "attention_mask"]
    content = {
        "input_keys": keys,
        "input_dtypes": dict.fromkeys(keys, "int64"),
        "feature_names": keys,
        "labels": list(labels),
        "padding": {"input_ids": 0},
        "fixed_shape": {key: list(fixed_shape) for key in keys} if fixed_shape else None,
        "outputs": "dict:logits",
        "tolerance": 1e-4,
        "cases": [],
    } | changes
    (folder / "export.json").write_text(json.dumps(content))
    model, export = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.pt", "export.json"))
    return ExportedModel(path=folder.name, torchscript_sha256=model, export_sha256=export)


def inference(
    base: Path,
    modules: Mapping[str, torch.nn.Module],
    *,
    documents: int = 40,
    test: datasets.Dataset | None = None,
    processes: int | None = None,
    **model_options: Any,
) -> JobFolder:
    """The folder of an inference over a test split of random documents."""
    job = JobFolder(base, "infer")
    prefixes = tuple(column_prefix(name, tuple(modules)) for name in modules)
    data = split(documents, seed=7, prefixes=prefixes) if test is None else test
    data.save_to_disk(str(job.channel("test")))
    models = {
        name: write_model(job.channel("models") / name, module, **model_options) for name, module in modules.items()
    }
    write_spec(job, models, processes)
    return job


def write_spec(job: JobFolder, models: Mapping[str, ExportedModel], processes: int | None = None) -> None:
    task = InferTask(model_names=tuple(models), models=dict(models), processes=processes)
    compute = Compute(instance_type="local")
    spec = JobSpec(
        kind="processing", experiment="EXP-1", run=1, step="inference", task=task, channels=(), compute=compute
    )
    job.write_spec(spec)


def table(job: JobFolder, name: str) -> pa.Table:
    return pq.read_table(job.output / name)


def one_at_a_time(module: torch.nn.Module, data: datasets.Dataset, column: str = "input_ids") -> dict[str, Any]:
    """GUID -> probabilities float64[labels]: every document alone, without padding, through the eager model."""
    answers = {}
    with torch.no_grad():
        for row in data:
            ids = torch.tensor([row[column]], dtype=torch.int64)
            logits = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double().numpy()
            powers = np.exp(logits - logits.max())
            answers[row["artifact_guid"]] = powers / powers.sum()
    return answers
