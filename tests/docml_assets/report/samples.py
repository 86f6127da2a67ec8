"""Predictions drawn at random, and reports built from them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from docml_assets.report.build import ReportFiles, assess, build_report
from docml_assets.report.comparison import PreviousRun
from docml_assets.report.evidence import JobLine, Lineage
from docml_assets.report.predictions import Predictions, read_predictions, with_groups
from docml_assets.report.schema import Report

LABELS = ("invoice", "letter", "memo", "report")
SHA = "ab" * 32


def predictions_table(
    documents: int = 200,
    models: Sequence[str] = ("tiny",),
    labels: Sequence[str] = LABELS,
    *,
    accuracy: Sequence[float] = (0.8, 0.7, 0.6),
    truths: Sequence[str] | None = None,
    seed: int = 0,
    prefix: str = "doc",
) -> pa.Table:
    """predictions.parquet. truths: labels that test documents have (all by default)."""
    random = np.random.default_rng(seed)
    names = np.array(labels)
    truth = random.choice(np.array(truths or labels), documents)
    columns: dict[str, Any] = {
        "artifact_guid": [f"{prefix}-{index:06d}" for index in range(documents)],
        "label": pa.array(truth, pa.string()),
    }
    for model, share in zip(models, accuracy, strict=False):
        said = np.where(random.random(documents) < share, truth, random.choice(names, documents))
        columns[f"{model}_prediction"] = pa.array(said, pa.string())
        columns[f"{model}_probability"] = pa.array(random.uniform(0.3, 1, documents).astype(np.float32))
    return pa.table(columns)


def documents_table(predictions: pa.Table, models: Sequence[str]) -> pa.Table:
    """The part of documents.parquet that reports read."""
    random = np.random.default_rng(1)
    columns = {"artifact_guid": predictions["artifact_guid"]}
    for model in models:
        columns[f"{model}_tokens"] = pa.array(random.integers(5, 512, predictions.num_rows).astype(np.int32))
    return pa.table(columns)


def read(table: pa.Table, labels: Sequence[str] = LABELS) -> Predictions:
    return read_predictions(table, labels, "predictions of the test")


def report(table: pa.Table, labels: Sequence[str] = LABELS, **changes: Any) -> ReportFiles:
    """A whole report; `changes` replace arguments of `build_report`."""
    models = [name.removesuffix("_prediction") for name in table.column_names if name.endswith("_prediction")]
    rows = [
        {"epoch": epoch, "train_loss": 1 / epoch, "valid_loss": 1.2 / epoch, "valid_f1": 0.5 + 0.1 * epoch}
        for epoch in (1, 2, 3)
    ]
    timing = {"docs_per_second": 120.5, "latency_ms": 7.25, "torchscript_sha256": SHA}
    arguments: dict[str, Any] = {
        "experiment": "EXP-1-test",
        "run": 2,
        "predictions": table,
        "labels": labels,
        "documents": documents_table(table, models),
        "timings": {"hardware": {"cores": 2, "gpu": None}, "models": dict.fromkeys(models, timing)},
        "history": dict.fromkeys(models, rows),
        "lineage": Lineage(
            claimed=("2026-11-27T12:30:00+00:00", "docml run, by somebody on a-machine"),
            data_versions={"encoded_splits": "1234"},
            hashes={"git": "abcd"},
            jobs=(JobLine("training", "EXP-1-test-r2-training", models[0], 130.0, 0.25),),
        ),
        "previous": [],
        "settings": {"settings": {"SPLIT": "0.8, 0.1, 0.1"}, "hyperparameters": {"epochs": "3"}},
        "excerpts": lambda guid: f"The text of {guid}.",
    }
    return build_report(**(arguments | changes))


def assessed(
    table: pa.Table, previous: Sequence[PreviousRun] = (), *, groups: dict[str, str] | None = None, run: int = 2
) -> Report:
    """The numbers and sentences only."""
    return assess("EXP-1-test", run, read(table if groups is None else with_groups(table, groups)), {}, previous, {})
