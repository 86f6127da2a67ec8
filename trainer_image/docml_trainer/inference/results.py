"""What an inference leaves: tables of predictions and probabilities, timings, OUTPUT.json."""

import json
from collections.abc import Mapping
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from docml_contract.base import digest
from docml_contract.manifests import write_output
from docml_contract.names import (
    DOCUMENTS,
    PREDICTION_SUFFIX,
    PREDICTIONS,
    PROBABILITIES_SUFFIX,
    PROBABILITY_SUFFIX,
    TIMINGS,
    TOKENS_SUFFIX,
)
from docml_trainer.data.shapes import ARTIFACT_GUID, LABELS
from docml_trainer.inference.prediction import ModelResult
from docml_trainer.machine import hardware


def write_results(output: Path, test: datasets.Dataset, results: Mapping[str, ModelResult]) -> None:
    """The tables, sorted by GUID, the timings, and OUTPUT.json."""
    guids = test[ARTIFACT_GUID][:]
    order = np.array(sorted(range(len(guids)), key=lambda row: guids[row]), dtype=np.int64)
    names = test.features[LABELS].names
    labels = pa.array([names[label] for label in np.asarray(test[LABELS][:])[order]], pa.string())
    keys = {ARTIFACT_GUID: pa.array([guids[row] for row in order], pa.string()), "label": labels}
    predictions, documents = dict(keys), dict(keys)
    for name, result in results.items():
        predicted = result.predictions[order]
        probabilities = result.probabilities[order].astype(np.float32)
        predictions[name + PREDICTION_SUFFIX] = pa.array([names[label] for label in predicted], pa.string())
        predictions[name + PROBABILITY_SUFFIX] = pa.array(probabilities[np.arange(len(predicted)), predicted])
        documents[name + PROBABILITIES_SUFFIX] = pa.FixedSizeListArray.from_arrays(
            probabilities.reshape(-1), len(names)
        )
        if result.tokens is not None:
            documents[name + TOKENS_SUFFIX] = pa.array(result.tokens[order].astype(np.int32))
    pq.write_table(pa.table(predictions), output / PREDICTIONS, compression="zstd")
    pq.write_table(pa.table(documents), output / DOCUMENTS, compression="zstd")
    timings = {
        "num_documents": len(test),
        "hardware": hardware() | {"torch": torch.__version__},
        "models": {name: result.timings for name, result in results.items()},
    }
    (output / TIMINGS).write_text(json.dumps(timings, indent=2) + "\n", encoding="utf-8")
    answers = {
        name: column.to_pylist() for name, column in predictions.items() if not name.endswith(PROBABILITY_SUFFIX)
    }
    facts = {
        "documents": len(test),
        "docs_per_second": {name: result.timings["docs_per_second"] for name, result in results.items()},
        "accuracy": {
            name: float((result.predictions == np.asarray(test[LABELS][:])).mean()) for name, result in results.items()
        },
    }
    write_output(output, "infer", digest(["predictions", answers]), facts)
