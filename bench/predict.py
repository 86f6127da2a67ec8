"""A whole prediction (`python -m docml_trainer predict`) against the slower of its halves alone: encoding, and inference.

The 7,528 documents of 20 Newsgroups' test set, cut at 512 tokens, through MiniLM as TorchScript. The halves are what other commands measure: the
encoder's pool over the same documents, and the rate that `python -m docml_trainer infer` reports for 2,000 of them, drawn at random. The whole
job's time counts from its start to its end, imports, checks of hashes and writing included.

DOCML_BENCH_DOCUMENTS: another number of documents, to try the benchmark out.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import inference
from bench._deployments import deployment_folder
from docml_contract import names
from docml_contract.jobs import Compute, InferTask, JobSpec, PredictTask, Task
from docml_contract.manifests import sha256_file

TRAINER = Path(__file__).parents[1] / "trainer_image"
INFERRED = 2_000  # documents that inference alone is measured on
MODEL = "minilm"
FUNCTIONS = f"""
from transformers import AutoTokenizer

TOKENIZER = AutoTokenizer.from_pretrained({str(inference.minilm())!r})


def get_dataset_features(context):
    from datasets import Features, List, Value

    return Features({{"input_ids": List(Value("uint16"))}})


def encode_data(instance, context):
    text = instance["text.txt"].read_text(encoding="utf-8")
    return {{"input_ids": TOKENIZER(text, truncation=True, max_length={inference.LENGTH})["input_ids"]}}
"""


def run() -> list[dict[str, Any]]:
    texts, labels, label_names = inference.documents()
    count = int(os.environ.get("DOCML_BENCH_DOCUMENTS") or len(texts))
    texts, labels = texts[:count], labels[:count]
    some = np.random.default_rng(0).permutation(count)[:INFERRED]
    with tempfile.TemporaryDirectory(prefix="docml-bench-") as folder:
        job = lay_out(Path(folder) / "predict", texts, label_names)
        encoding = encoding_rate(job, Path(folder) / "encoded", len(texts))
        chosen, chosen_labels = [texts[index] for index in some], [labels[index] for index in some]
        predicting = inference_rate(Path(folder) / "infer", chosen, chosen_labels, label_names)
        started = time.perf_counter()
        trainer(job, "predict")
        whole = len(texts) / (time.perf_counter() - started)
        rows = pq.read_table(job / "processing/output/result" / names.PREDICTION_PARTS / "0.parquet")
        assert rows["error"].null_count == rows.num_rows == len(texts)
    slower = min(encoding, predicting)
    return [
        {
            "bench": "predict",
            "metric": f"{MODEL}: {len(texts):,} documents, the whole job",
            "unit": "docs/s",
            "ours": round(whole, 2),
            "peers": {"encoding alone": round(encoding, 2), "inference alone": round(predicting, 2)},
            "ratio": None,
        },
        {
            "bench": "predict",
            "metric": f"{MODEL}: share of the slower half's rate (at least .9)",
            "unit": "",
            "ours": round(whole / slower, 3),
            "peers": {},
            "ratio": None,
        },
    ]


def lay_out(base: Path, texts: list[str], label_names: list[str]) -> Path:
    """The folder of a prediction job."""
    channels = base / "processing/input"
    deployment = channels / "deployment"
    deployment_folder(deployment, MODEL, label_names, "text.txt", FUNCTIONS)
    guids = [f"{number:05d}" for number in range(len(texts))]
    for guid, text in zip(guids, texts, strict=True):
        path = channels / "documents" / guid / "text.txt"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    table = pa.table(
        {
            "artifact_guid": guids,
            "label": [""] * len(guids),
            "group": pa.nulls(len(guids), pa.string()),
            "file": ["text.txt"] * len(guids),
            "path": [f"{guid}/text.txt" for guid in guids],
        }
    )
    write_spec(base, PredictTask(manifest_sha256=sha256_file(deployment / names.MANIFEST)))
    pq.write_table(table, channels / "spec" / names.ARTIFACTS_TABLE)
    return base


def encoding_rate(job: Path, folder: Path, count: int) -> float:
    """Documents a second through the encoder's pool, with all cores."""
    code = f"""
import os
from pathlib import Path
from docml_trainer.container import Folders
from docml_trainer.inference.model import DeploymentFolder
from docml_trainer.preparation.documents import read_documents
from docml_trainer.preparation.parts import KeptParts
from docml_trainer.preparation.pool import BATCH, encode, stuck_seconds
from docml_trainer.preparation.worker import EncodingPlan
if __name__ == "__main__":
    folders, cores = Folders(Path({str(job)!r}), "predict"), len(os.sched_getaffinity(0))
    deployment = DeploymentFolder.open(folders.channel("deployment"), None)
    task = deployment.encoding_task(cores)
    documents = read_documents(folders.channel("spec") / "artifacts.parquet", task)
    plan = EncodingPlan(functions=deployment.functions, artifacts=folders.channel("documents"), prefix="documents", task=task,
        label_names=deployment.context.labels, batch=BATCH, parallel_tokenizer=cores == 1, only_for="{MODEL}")
    encode(documents, range(len(documents)), plan, KeptParts.of_one_attempt(Path({str(folder)!r})), processes=cores,
        stuck_seconds=stuck_seconds(), progress=lambda done, total: None)
"""
    folder.mkdir()
    script = folder / "encode.py"
    script.write_text(code)
    started = time.perf_counter()
    subprocess.run([sys.executable, str(script)], env=environment(job), check=True)
    return count / (time.perf_counter() - started)


def inference_rate(base: Path, texts: list[str], labels: list[int], label_names: list[str]) -> float:
    """The rate that the inference job reports."""
    import datasets

    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("uint16")),
            "labels": datasets.ClassLabel(names=label_names),
            "artifact_guid": datasets.Value("string"),
        }
    )
    columns = {
        "input_ids": inference.tokenized(texts),
        "labels": labels,
        "artifact_guid": [f"{row:05d}" for row in range(len(texts))],
    }
    channels = base / "processing/input"
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(channels / "test"))
    exported = inference.export(channels / "models" / MODEL, MODEL, label_names)
    write_spec(base, InferTask(model_names=(MODEL,), models={MODEL: exported}))
    trainer(base, "infer")
    timings = json.loads((base / "processing/output/result" / names.TIMINGS).read_text())
    return float(timings["models"][MODEL]["docs_per_second"])


def write_spec(base: Path, task: Task) -> None:
    spec = JobSpec(
        kind="processing",
        experiment="EXP-1-bench",
        run=1,
        step="inference" if isinstance(task, InferTask) else "prediction",
        task=task,
        channels=(),
        compute=Compute(instance_type="local"),
    )
    folder = base / "processing/input/spec"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names.SPEC).write_bytes(spec.to_bytes())


def trainer(base: Path, command: str) -> None:
    subprocess.run([sys.executable, "-m", "docml_trainer", command], env=environment(base), check=True)


def environment(base: Path) -> dict[str, str]:
    return os.environ | {"SAGEMAKER_BASE_DIR": str(base), "PYTHONPATH": str(TRAINER), "HF_HUB_OFFLINE": "1"}
