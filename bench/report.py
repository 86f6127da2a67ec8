"""A report on 100,000 predictions of three models with 50 labels: seconds, and bytes of its page."""

import time
from typing import Any

import numpy as np
import pyarrow as pa

from docml_assets.report.build import build_report
from docml_assets.report.evidence import Lineage

DOCUMENTS, MODELS, LABELS = 100_000, 3, 50
REPEATS = 3


def tables() -> tuple[pa.Table, pa.Table, list[str]]:
    """Predictions that are right in 80 to 84 %, their documents, and the labels."""
    random = np.random.default_rng(0)
    labels = [f"label {index:02d}" for index in range(LABELS)]
    truth = random.integers(0, LABELS, DOCUMENTS)
    guids = pa.array([f"{index:032x}" for index in range(DOCUMENTS)])
    predictions = {"artifact_guid": guids, "label": pa.array(np.array(labels)[truth], pa.string())}
    documents = {"artifact_guid": guids}
    for index in range(MODELS):
        right = random.random(DOCUMENTS) < 0.8 + 0.02 * index
        said = np.where(right, truth, random.integers(0, LABELS, DOCUMENTS))
        predictions[f"model-{index}_prediction"] = pa.array(np.array(labels)[said], pa.string())
        predictions[f"model-{index}_probability"] = pa.array(random.beta(5, 1, DOCUMENTS).astype(np.float32))
        documents[f"model-{index}_tokens"] = pa.array(random.integers(5, 512, DOCUMENTS).astype(np.int32))
    return pa.table(predictions), pa.table(documents), labels


def run() -> list[dict[str, Any]]:
    predictions, documents, labels = tables()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        files = build_report(
            experiment="EXP-1-bench",
            run=1,
            predictions=predictions,
            labels=labels,
            documents=documents,
            timings={},
            history={f"model-{index}": [{"epoch": 1, "train_loss": 1.0, "valid_loss": 1.0}] for index in range(MODELS)},
            lineage=Lineage(),
            previous=[],
            settings={},
            excerpts=lambda guid: f"The text of {guid}. " * 100,
        )
        seconds.append(time.perf_counter() - started)
    what = f"{DOCUMENTS:,} predictions x {MODELS} models x {LABELS} labels"
    return [
        _row(f"report on {what}, median of {REPEATS}", "s", round(float(np.median(seconds)), 2)),
        _row(f"report.html of {what}", "MB", round(len(files.html) / 1e6, 3)),
    ]


def _row(metric: str, unit: str, ours: float) -> dict[str, Any]:
    return {"bench": "report", "metric": metric, "unit": unit, "ours": ours, "peers": {}, "ratio": None}
