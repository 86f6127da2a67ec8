"""The answers of exported models on the test split: by a job of their own (`docml_trainer.infer`), or when a training's job has trained."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from docml_contract.base import digest
from docml_contract.jobs import ExportedModel, InferTask
from docml_contract.manifests import sha256_file, write_atomically, write_output
from docml_contract.names import (
    DOCUMENTS,
    EXPORT,
    INFERENCE,
    PREDICTION_SUFFIX,
    PREDICTIONS,
    PROBABILITIES_SUFFIX,
    PROBABILITY_SUFFIX,
    TIMINGS,
    TOKENS_SUFFIX,
    TORCHSCRIPT,
    VALIDATION,
    column_prefix,
)
from docml_trainer.container import Folders, hardware
from docml_trainer.data.datasets import Rows
from docml_trainer.data.shapes import ARTIFACT_GUID, LABELS
from docml_trainer.errors import DataError
from docml_trainer.inference.model import ModelFiles
from docml_trainer.inference.pool import Pool, open_pool
from docml_trainer.inference.prediction import LoadedModel, ModelResult


def answer_splits(folders: Folders, task: InferTask, files: Sequence[ModelFiles], output: Path) -> None:
    """Predict the test split, and where a decision policy is made the validation split, with every model; write what is handed over."""
    test = load_split(folders.channel("test"), "test")
    valid = load_split(folders.channel("valid"), "validation") if task.validation else None
    for model in files:
        check_labels(model, test)
    if valid is not None:
        answers = predict_split(task, files, valid, folders.channel("valid"))
        pq.write_table(documents_table(valid, answers), output / VALIDATION, compression="zstd")
    write_results(output, test, predict_split(task, files, test, folders.channel("test")))


BEGUN, ENDED = "begun", "ended"


def predict_after_training(folders: Folders, mark: Path) -> None:
    """The phase of a training's job that answers with the model it has just exported: what the job of its own hands over, in a folder.

    Nothing that goes wrong here costs the training: a job of its own answers then. `mark`, among the checkpoints, says that the
    phase was begun: an attempt whose forerunner died in it (of memory, say) leaves it out.
    """
    task = folders.train_task()
    if task.inference is None or folders.spec().tuning is not None:
        return
    if mark.is_file() and mark.read_text() == BEGUN:
        print(
            "The attempt before this one ended while it predicted the test split: that is left to a job of its own.",
            flush=True,
        )
        return
    write_atomically(mark, BEGUN.encode())
    output = folders.output / INFERENCE
    try:
        output.mkdir()
        hashes = {name: sha256_file(folders.output / name) for name in (TORCHSCRIPT, EXPORT)}
        exported = ExportedModel(path=".", torchscript_sha256=hashes[TORCHSCRIPT], export_sha256=hashes[EXPORT])
        asked = InferTask(model_names=task.model_names, models={}, validation=task.inference.validation)
        answer_splits(folders, asked, [ModelFiles.verify(task.model_name, folders.output, exported)], output)
    except Exception as error:
        shutil.rmtree(output, ignore_errors=True)
        print(f"Warning: the test split is left to a job of its own: {type(error).__name__}: {error}", flush=True)
    finally:  # after SIGTERM as well: the next attempt does it
        write_atomically(mark, ENDED.encode())


def predict_split(
    task: InferTask, files: Sequence[ModelFiles], data: datasets.Dataset, folder: Path
) -> dict[str, ModelResult]:
    """The answers of every model on the split that lies in `folder`."""
    results: dict[str, ModelResult] = {}
    with ExitStack() as stack:
        workers: Pool | None = None
        for model in files:
            loaded = LoadedModel(model, data, column_prefix(model.name, task.model_names))
            processes = loaded.processes(task.processes)
            if processes > 1 and workers is None:
                workers = stack.enter_context(open_pool(processes, folder))
            results[model.name] = loaded.predict(workers if processes > 1 else None)
    return results


def load_split(folder: Path, what: str) -> datasets.Dataset:
    """The test or validation split. DataError if it is missing or empty: no other split stands in for it."""
    if not (folder / "dataset_info.json").is_file():
        raise DataError(
            f"{folder}: no data set; expected the {what} split that preparation wrote (nothing else stands in for it)"
        )
    if not _has_shards(folder) or not len(test := datasets.load_from_disk(str(folder))):
        raise DataError(
            f"the {what} split is empty; expected documents that no model was trained on "
            f"(give SPLIT a {what} share above 0, or prepare more documents)"
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
    order, predictions = _in_order(test)
    names = test.features[LABELS].names
    for name, result in results.items():
        predicted = result.predictions[order]
        probability = result.probabilities[order, predicted].astype(np.float32)
        predictions[name + PREDICTION_SUFFIX] = pa.array([names[label] for label in predicted], pa.string())
        predictions[name + PROBABILITY_SUFFIX] = pa.array(probability)
    pq.write_table(pa.table(predictions), output / PREDICTIONS, compression="zstd")
    pq.write_table(documents_table(test, results), output / DOCUMENTS, compression="zstd")
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


def documents_table(split: datasets.Dataset, results: Mapping[str, ModelResult]) -> pa.Table:
    """GUID, label, and of every model all probabilities and, where it has any, the number of tokens; sorted by GUID."""
    order, documents = _in_order(split)
    for name, result in results.items():
        probabilities = result.probabilities[order].astype(np.float32)
        documents[name + PROBABILITIES_SUFFIX] = pa.FixedSizeListArray.from_arrays(
            probabilities.reshape(-1), probabilities.shape[1]
        )
        if result.tokens is not None:
            documents[name + TOKENS_SUFFIX] = pa.array(result.tokens[order].astype(np.int32))
    return pa.table(documents)


def _in_order(split: datasets.Dataset) -> tuple[Rows, dict[str, pa.Array]]:
    """(int64[documents], the rows in the order of their GUIDs; the columns GUID and label in this order)."""
    guids, names = split[ARTIFACT_GUID][:], split.features[LABELS].names
    order = np.array(sorted(range(len(guids)), key=lambda row: guids[row]), dtype=np.int64)
    labels = [names[label] for label in np.asarray(split[LABELS][:])[order]]
    return order, {
        ARTIFACT_GUID: pa.array([guids[row] for row in order], pa.string()),
        "label": pa.array(labels, pa.string()),
    }
