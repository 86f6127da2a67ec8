"""Six document models through training, export and inference: what is said about a document is said of it alone.

Short and long documents, trained one by one and eight at a time. Every document's answer by the job equals, within 1e-5 of a probability,
what the trained model (not its export) says about the document alone, and so do the export's answers in any company.
"""

import json
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from docml_contract.jobs import ExportedModel
from docml_contract.manifests import sha256_file
from docml_contract.names import column_prefix
from docml_trainer.__main__ import main
from docml_trainer.data.classifier import Classifier, forward_parameters
from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import fetch
from docml_trainer.functions import Context, UserFunctions
from docml_trainer.inference.model import ModelFiles, Predictor, softmax
from tests.docml_trainer.document_models import LONGEST, MODELS, documents
from tests.docml_trainer.inferences import write_spec
from tests.docml_trainer.jobfolder import JobFolder
from tests.docml_trainer.trainings import LABELS, run_here, training_job

TOLERANCE = 1e-5  # of a probability
TEST_DOCUMENTS = 20


@pytest.mark.parametrize(
    "names", [("bert",), ("lilt",), ("pages",), ("longformer",), ("decoder",), ("bert", "image")], ids="-".join
)
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_alone_as_in_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], batch: int
) -> None:
    test = documents(names, TEST_DOCUMENTS, 2)
    jobs = {name: train(tmp_path, monkeypatch, name, names, batch) for name in names}
    table, files = infer(jobs, test, tmp_path / "inference", monkeypatch)
    for name, job in jobs.items():
        prefix = column_prefix(name, names)
        expected = one_at_a_time(job, test, prefix, name)
        assert np.ptp(expected, axis=0).max() > 0.01, "answers that hardly differ prove nothing"
        said = np.array([table[guid][f"{name}_probabilities"] for guid in test["artifact_guid"]])
        assert np.abs(said - expected).max() < TOLERANCE
        predictor = Predictor(files[name], test, prefix, "cpu")
        long, short = np.arange(0, TEST_DOCUMENTS, 2), np.arange(1, TEST_DOCUMENTS, 2)
        for rows in (long[:1], short[:1], long[:8], short[:8], np.arange(8), np.arange(8)[::-1].copy()):
            parts = np.array_split(rows, len(rows)) if files[name].fixed_batch == 1 else [rows]
            answers = np.concatenate([softmax(predictor(part)) for part in parts])
            assert np.abs(answers - expected[rows]).max() < TOLERANCE


def train(base: Path, monkeypatch: pytest.MonkeyPatch, name: str, names: tuple[str, ...], batch: int) -> JobFolder:
    """One of the models `names`, trained for an epoch."""
    options = {
        "epochs": 1, "learning_rate": 1e-4, "train_batch_size": batch, "eval_batch_size": batch, "max_length": LONGEST + 4
    }  # fmt: skip
    job = training_job(base / name, MODELS[name].functions, model=name, models=names, hyperparameters=options)
    for seed, (split, count) in enumerate((("train", 24), ("valid", 8))):
        documents(names, count, seed).save_to_disk(str(job.channel(split)))
    assert run_here(job, monkeypatch) == 0, job.failure
    return job


def infer(
    jobs: dict[str, JobFolder], test: datasets.Dataset, base: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, dict[str, Any]], dict[str, ModelFiles]]:
    """Predict the test split with what the jobs exported, in this process. Returns the table by GUID, and the models' files."""
    inference = JobFolder(base, "infer")
    test.save_to_disk(str(inference.channel("test")))
    exported = {}
    for name, job in jobs.items():
        (inference.channel("models") / name).symlink_to(job.output)
        hashes = [sha256_file(job.output / file) for file in ("model.pt", "export.json")]
        exported[name] = ExportedModel(path=name, torchscript_sha256=hashes[0], export_sha256=hashes[1])
    write_spec(inference, exported)
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(base))
    assert main(["infer"]) == 0, (base / "output/failure").read_text()
    table = pq.read_table(inference.output / "documents.parquet").to_pylist()
    files = {name: ModelFiles.verify(name, inference.channel("models"), model) for name, model in exported.items()}
    return {row["artifact_guid"]: row for row in table}, files


def one_at_a_time(job: JobFolder, test: datasets.Dataset, prefix: str, name: str) -> np.ndarray:
    """float64[documents, labels]: probabilities of the trained model, each document alone and not padded."""
    values = json.loads((job.output / "statistics.json").read_text())["hyperparameters"]
    accelerate.utils.set_seed(0)
    functions = UserFunctions.load(job.folders.user_functions)
    model = functions.load_model(name, Context.of(name, (name,), LABELS, values)).eval()
    missing, unexpected = model.load_state_dict(load_file(job.output / "model.safetensors"), strict=False)
    assert not unexpected
    assert not [key for key in missing if key in dict(model.named_parameters())]
    collate = Collator(test.features, prefix=prefix, forward_parameters=forward_parameters(model))
    classifier = Classifier.of(model)
    with torch.no_grad():
        rows = [classifier.logits(collate(fetch(test, np.array([row]))))[0].numpy() for row in range(len(test))]
    return softmax(np.stack(rows))
