"""Predict the test split with every model of the run: `python -m docml_trainer infer`.

    processing/input/spec/spec.json    which models, and their hashes
    processing/input/test/             the test split, in the datasets format
    processing/input/models/<path>/    model.pt and export.json of each model
    processing/output/result/          predictions.parquet, documents.parquet, timings.json, OUTPUT.json

The models are the files that production would load. Documents of about one length go through a model together, so that hardly anything
is padded; answers do not depend on who shares a batch with whom (within 1e-5 of a probability).
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from docml_contract.base import digest
from docml_contract.jobs import InferTask
from docml_contract.manifests import write_output
from docml_contract.names import (
    DOCUMENTS,
    PREDICTION_SUFFIX,
    PREDICTIONS,
    PROBABILITIES_SUFFIX,
    PROBABILITY_SUFFIX,
    TIMINGS,
    TOKENS_SUFFIX,
    column_prefix,
)
from docml_trainer.container import Folders, hardware
from docml_trainer.data.shapes import ARTIFACT_GUID, LABELS
from docml_trainer.errors import DataError, FolderError
from docml_trainer.inference.model import ModelFiles
from docml_trainer.inference.pool import Pool, open_pool
from docml_trainer.inference.prediction import LoadedModel, ModelResult


def main(folders: Folders) -> None:
    """Verify, load, predict, write."""
    task = read_task(folders)
    hosts = folders.resource_config()
    if hosts.index > 0:
        print(f"{min(hosts.hosts)} predicts alone; nothing is left for {hosts.current_host}.", flush=True)
        return
    test = load_test(folders.channel("test"))
    files = [ModelFiles.verify(name, folders.channel("models"), task.models[name]) for name in task.model_names]
    for model in files:
        check_labels(model, test)
    results: dict[str, ModelResult] = {}
    with ExitStack() as stack:
        workers: Pool | None = None
        for model in files:
            loaded = LoadedModel(model, test, column_prefix(model.name, task.model_names))
            processes = loaded.processes(task.processes)
            if processes > 1 and workers is None:
                workers = stack.enter_context(open_pool(processes, folders.channel("test")))
            results[model.name] = loaded.predict(workers if processes > 1 else None)
    write_results(folders.output, test, results)


def read_task(folders: Folders) -> InferTask:
    """The spec's task. FolderError if it is no inference, or lacks one of its models."""
    task = folders.spec().task
    if not isinstance(task, InferTask):
        raise FolderError(f"the spec asks for {task.command!r}; expected an inference task")
    unknown = [name for name in task.model_names if name not in task.models]
    if unknown:
        raise FolderError(
            f"the spec says nothing about the files of {', '.join(unknown)}; expected path and hashes of each model"
        )
    return task


def load_test(folder: Path) -> datasets.Dataset:
    """The test split. DataError if it is missing or empty: no other split stands in for it."""
    if not (folder / "dataset_info.json").is_file():
        raise DataError(
            f"{folder}: no data set; expected the test split that preparation wrote (nothing else stands in for it)"
        )
    if not _has_shards(folder) or not len(test := datasets.load_from_disk(str(folder))):
        raise DataError(
            "the test split is empty; expected documents that no model has seen "
            "(give SPLIT a test share above 0, or prepare more documents)"
        )
    lacking = [name for name in (LABELS, ARTIFACT_GUID) if name not in test.features]
    if lacking or not isinstance(test.features[LABELS], datasets.ClassLabel):
        raise DataError(
            f"{folder}: found the columns {sorted(test.features)}; expected {ARTIFACT_GUID} and {LABELS} as a ClassLabel"
        )
    return test


def check_labels(model: ModelFiles, test: datasets.Dataset) -> None:
    """The model's outputs must stand for the labels of the test split, in the same order."""
    expected = tuple(test.features[LABELS].names)
    if model.labels == expected:
        return
    only_model = [label for label in model.labels if label not in expected]
    only_test = [label for label in expected if label not in model.labels]
    differ = [f"only the model knows {', '.join(map(repr, only_model))}"] if only_model else []
    differ += [f"only the test split has {', '.join(map(repr, only_test))}"] if only_test else []
    raise DataError(
        f"model {model.name!r} was trained for {len(model.labels)} labels, the test split has {len(expected)}: "
        f"{'; '.join(differ) or 'the same labels in another order'}. Expected the data that the model was trained on "
        "(train again on the prepared data of this run)"
    )


def _has_shards(folder: Path) -> bool:
    """A data set without rows may have been saved without a shard, which `datasets` writes but does not read."""
    state = folder / "state.json"
    return not state.is_file() or bool(json.loads(state.read_text(encoding="utf-8"))["_data_files"])


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
