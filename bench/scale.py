"""What one more document costs at one, three and ten times the size: processor time and memory of each step, in processes of their own.

Processor time rather than seconds, since that hardly depends on what else a machine does. Of each step stands the cost of a further document
between three and ten times the size, beside that between one and three times: a ratio near 1 is linear. docs/scale.md says what follows for
ten million documents. Documents have 200 words; their encoder is made of nothing but checksums, and the model is a BERT of two layers of width
128, so that what is measured is the platform.
"""

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench import inference, reconcile
from bench._synthetic_s3 import FILE, guids, synthetic_s3
from docml_contract import names
from docml_contract.jobs import Channel, Compute, InferTask, JobSpec, PrepareTask
from tests.servers.postgres import postgres

TRAINER = Path(__file__).parents[1] / "trainer_image"
PLANNED = (100_000, 300_000, 1_000_000)  # labels, and as many keys
COPIED = (3_000, 9_000, 30_000)
ENCODED = (5_000, 15_000, 50_000)
WORDS, LABELS = 200, 20
FUNCTIONS = """
import json
import zlib


def get_dataset_features(context):
    import datasets

    return datasets.Features({"input_ids": datasets.List(datasets.Value("uint16"))})


def encode_data(instance, context):
    words = json.loads(instance["raw_text.json"].read_bytes())["text"].split()
    return {"input_ids": [1000 + zlib.crc32(word.encode()) % 20_000 for word in words]}
"""
_COPY = """
import json, sys
from bench._synthetic_s3 import FILE, guids
from bench.copies import ours

ours(json.loads(sys.argv[1]), [f"{guid}/{FILE}" for guid in guids(int(sys.argv[2]))], "to")
"""
_TRAINING_INPUT = """
import sys
from datasets import load_from_disk
from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import document_lengths, fetch, global_batches

data = load_from_disk(sys.argv[1])
collate = Collator(data.features, forward_parameters=["input_ids", "attention_mask"])
for epoch in range(1, 11):
    for rows in global_batches(document_lengths(data, ""), 32, 13, epoch):
        collate(fetch(data, rows))
"""


@dataclass(frozen=True)
class Point:
    """What a process took for so many documents."""

    documents: int
    seconds: float  # of processors
    peak_mb: float


def run() -> list[dict[str, Any]]:
    """The rows of this bench."""
    steps: dict[str, list[Point]] = {"list, fetch and plan": plan(), "copy": copy()}
    with tempfile.TemporaryDirectory(prefix="docml-bench-") as folder:
        for documents in ENCODED:
            for step, point in jobs(Path(folder) / str(documents), documents).items():
                steps.setdefault(step, []).append(point)
            shutil.rmtree(Path(folder) / str(documents))
    return [row for step, points in steps.items() for row in rows_of(step, points)]


def rows_of(step: str, points: Sequence[Point]) -> list[dict[str, Any]]:
    """A step's processor time and memory for a further document."""
    print(step, [(point.documents, round(point.seconds, 2), round(point.peak_mb)) for point in points], flush=True)
    earlier, later = (slope(points, at, lambda point: point.seconds * 1000) for at in (0, 1))
    memory = [slope(points, at, lambda point: point.peak_mb * 1024) for at in (0, 1)]
    before = f"{points[0].documents:,} to {points[1].documents:,}"
    row = {"bench": "scale", "metric": f"{step}: a further document", "ratio": None}
    return [
        {
            **row,
            "unit": "CPU ms",
            "ours": round(later, 4),
            "peers": {before: round(earlier, 4)},
            "ratio": round(later / earlier, 2),
        },
        {**row, "unit": "kB", "ours": round(memory[1], 3), "peers": {before: round(memory[0], 3)}},
    ]


def slope(points: Sequence[Point], at: int, cost: Callable[[Point], float]) -> float:
    """What a further document costs between one size and the next."""
    low, high = points[at : at + 2]
    return (cost(high) - cost(low)) / (high.documents - low.documents)


def measure(documents: int, arguments: Sequence[str], **environment: str) -> Point:
    """A Python process with everything that it starts. RuntimeError if it fails."""
    kept = {**os.environ, "PYTHONPATH": f"{TRAINER.parent}{os.pathsep}{TRAINER}", "OMP_NUM_THREADS": "1"}
    kept |= {"HF_HUB_OFFLINE": "1", **environment}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, *arguments], env=kept, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(said.read().decode(errors="replace")[-3000:])
    return Point(documents, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def plan() -> list[Point]:
    """Labels from PostgreSQL, keys from a server with 30 ms a page, and what is to be copied."""
    points = []
    for documents in PLANNED:
        with postgres() as server, synthetic_s3(0.03, documents) as environment:
            reconcile.load_labels(server, guids(documents))
            points.append(measure(documents, ["-c", reconcile._MEASURE, server.url, json.dumps(environment)]))
    return points


def copy() -> list[Point]:
    """Server-side copies, one request each."""
    with synthetic_s3(0.03) as environment:
        return [measure(count, ["-c", _COPY, json.dumps(environment), str(count)]) for count in COPIED]


def jobs(work: Path, documents: int) -> dict[str, Point]:
    """Preparation whole, the merge of two hosts' shards, ten epochs of training's input, and inference."""
    table = write_documents(work / "artifacts", documents)
    whole = prepare(work / "whole", table, "whole")
    found = {
        "encode, split and write": measure(documents, ["-m", "docml_trainer", "prepare"], SAGEMAKER_BASE_DIR=str(whole))
    }
    merge = prepare(work / "merge", table, "merge")
    for host in (0, 1):
        shard = prepare(work / f"shard-{host}", table, "shard", host)
        measure(documents, ["-m", "docml_trainer", "prepare"], SAGEMAKER_BASE_DIR=str(shard))
        made = shard / "processing/output/result/shards" / str(host)
        made.rename(_folder(merge / "processing/input/shards/shards") / str(host))
    found["merge shards"] = measure(documents, ["-m", "docml_trainer", "prepare"], SAGEMAKER_BASE_DIR=str(merge))
    encoded = whole / "processing/output/result"
    found["ten epochs of training's input"] = measure(documents, ["-c", _TRAINING_INPUT, str(encoded / "train")])
    base = work / "infer"
    channels = base / "processing/input"
    _folder(channels)
    (encoded / "train").rename(channels / "test")
    labels = [f"label_{number:02d}" for number in range(LABELS)]
    # In a process of its own: what this one holds would be counted as the memory of those that it starts.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        exported = pool.submit(inference.export, channels / "models/tiny", "tiny", labels).result()
    task = InferTask(model_names=("tiny",), models={"tiny": exported}, processes=1)
    write_spec(base, "inference", task)
    found["predict"] = measure(documents, ["-m", "docml_trainer", "infer"], SAGEMAKER_BASE_DIR=str(base))
    return found


def prepare(base: Path, table: Path, phase: str, host: int = 0) -> Path:
    """A preparation job's folder."""
    channels = _folder(base / "processing/input")
    (channels / "artifacts").symlink_to(table.parent / "artifacts")
    task = PrepareTask(
        model_names=("tiny",),
        own_hyperparameters={},
        model_input_files=(FILE,),
        phase=phase,
        processes=1,
        baseline=False,
    )
    spec = write_spec(base, "preparation", task)
    shutil.copy(table, spec / names.ARTIFACTS_TABLE)
    (spec / names.USER_FUNCTIONS).write_text(FUNCTIONS)
    hosts = ["algo-1", "algo-2"] if phase == "shard" else ["algo-1"]
    content = {"current_host": hosts[host], "hosts": hosts, "network_interface_name": "lo"}
    (_folder(base / "processing/config") / "resourceconfig.json").write_text(json.dumps(content))
    (_folder(base / "config") / "resourceconfig.json").write_text(json.dumps(content))
    return base


def write_spec(base: Path, step: str, task: PrepareTask | InferTask) -> Path:
    """The spec channel of a processing job."""
    spec = _folder(base / "processing/input/spec")
    job = JobSpec(
        kind="processing",
        experiment="EXP-1-bench",
        run=1,
        step=step,
        task=task,
        channels=(Channel(name="artifacts", prefix="EXP-1-bench/data/reconciled_artifacts"),),
        compute=Compute(instance_type="local"),
    )
    (spec / names.SPEC).write_bytes(job.to_bytes())
    return spec


def write_documents(artifacts: Path, documents: int) -> Path:
    """Random documents as a job's artifacts channel; returns artifacts.parquet beside it."""
    draw = random.Random(13)
    vocabulary = [f"word{number}" for number in range(20_000)]
    rows = []
    for index in range(documents):
        guid = f"document-{index:07d}"
        (_folder(artifacts / guid / "v1") / FILE).write_text(
            json.dumps({"text": " ".join(draw.choices(vocabulary, k=WORDS))})
        )
        rows.append((guid, f"label_{index % LABELS:02d}", None, FILE, f"{guid}/v1/{FILE}", "v1"))
    columns = ("artifact_guid", "label", "group", "file", "path", "etag")
    table = pa.table({name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate(columns)})
    path = artifacts.with_suffix(".parquet")
    pq.write_table(table, path)
    return path


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
