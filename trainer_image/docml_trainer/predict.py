"""Predict documents without labels: `python -m docml_trainer predict`.

    processing/input/spec          spec.json, artifacts.parquet (as a preparation's, with empty labels)
    processing/input/deployment    the model's deployment folder
    processing/input/documents     <guid>/<file>
    processing/output/result       predictions.parquet, OUTPUT.json

Documents go the way of a test split: encode_data as it was frozen, the collator, the TorchScript file. One that cannot be encoded
becomes a row with an error.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from docml_contract import names
from docml_contract.base import digest
from docml_contract.jobs import PredictTask
from docml_contract.log_lines import PROGRESS, format_event
from docml_contract.manifests import write_output
from docml_trainer.container import Folders
from docml_trainer.errors import FolderError
from docml_trainer.inference.model import DeploymentFolder
from docml_trainer.preparation.documents import Documents, read_documents
from docml_trainer.preparation.pool import BATCH, encode, stuck_seconds
from docml_trainer.preparation.worker import EncodingPlan

if TYPE_CHECKING:
    from docml_trainer.inference.prediction import ModelResult

COMMAND = "predict"
LEFT_OUT = "encode_data returned None: the document is left out"


def main(folders: Folders) -> None:
    """Verify, encode, predict, write."""
    task = folders.spec().task
    if not isinstance(task, PredictTask):
        raise FolderError(f"the spec's task is {task.command!r}; expected {COMMAND!r}")
    hosts = folders.resource_config()
    if hosts.index > 0:
        print(f"{min(hosts.hosts)} predicts alone; nothing is left for {hosts.current_host}.", flush=True)
        return
    deployment = DeploymentFolder.open(folders.channel("deployment"), task.manifest_sha256)
    documents = read_documents(folders.channel("spec") / names.ARTIFACTS_TABLE, deployment.encoding_task(None))
    scratch = folders.base / "processing" / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        errors = _encode(folders, task, deployment, documents, scratch)
        rows, misfits = _fitting(deployment, scratch / "rows")
        guids, result = _predict(deployment, rows)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _write(folders.output, deployment, documents, errors | misfits, guids, result)


def _encode(
    folders: Folders, task: PredictTask, deployment: DeploymentFolder, documents: Documents, scratch: Path
) -> dict[str, str]:
    """Write the encoded documents into `scratch/rows`; why others cannot be encoded, by GUID."""
    processes = task.processes or len(os.sched_getaffinity(0))
    plan = EncodingPlan(
        functions=deployment.functions,
        artifacts=folders.channel("documents"),
        prefix=folders.prefix_of("documents"),
        task=deployment.encoding_task(processes),
        label_names=deployment.context.labels,
        batch=BATCH,
        parallel_tokenizer=processes == 1,
        only_for=deployment.context.model_name,
    )

    def progress(done: int, total: int) -> None:
        print(format_event(PROGRESS, what="encoding", done=done, total=total, unit="documents"), flush=True)

    reports = encode(
        documents,
        range(len(documents)),
        plan,
        scratch,
        processes=processes,
        stuck_seconds=stuck_seconds(),
        progress=progress,
    )
    import datasets

    from docml_trainer.preparation.rows import write_unlabelled

    datasets.disable_progress_bars()
    declared = datasets.Features.from_dict(reports[0]["features"])
    write_unlabelled(sorted(scratch.glob("rows-*.arrow")), documents, declared, scratch / "rows")
    failures = [failure for report in reports for failure in report["tally"]["failures"]]
    return {failure["artifact_guid"]: f"{failure['file']}: {failure['error']}" for failure in failures}


def _fitting(deployment: DeploymentFolder, rows: Path) -> tuple[Path, dict[str, str]]:
    """The rows that the model takes, and why it does not take others, by GUID: an export of one shape refuses longer documents."""
    import datasets
    import numpy as np

    from docml_trainer.data.datasets import fetch
    from docml_trainer.data.shapes import ARTIFACT_GUID
    from docml_trainer.errors import DataError

    data = datasets.load_from_disk(str(rows))
    if deployment.model.fixed_batch is None or not len(data):
        return rows, {}
    collate = deployment.model.collator(data.features, deployment.prefix)
    misfits: dict[int, str] = {}
    for index in range(len(data)):
        try:
            collate(fetch(data, np.array([index])))
        except DataError as error:
            misfits[index] = str(error)
    if not misfits:
        return rows, {}
    kept = rows.with_name("fitting")
    data.select([index for index in range(len(data)) if index not in misfits]).save_to_disk(str(kept))
    return kept, {data[index][ARTIFACT_GUID]: reason for index, reason in misfits.items()}


def _predict(deployment: DeploymentFolder, rows: Path) -> "tuple[list[str], ModelResult | None]":
    """The GUIDs of the encoded documents, and the model's answers in their order; None where there are no documents."""
    import datasets

    from docml_trainer.data.shapes import ARTIFACT_GUID
    from docml_trainer.inference.pool import open_pool
    from docml_trainer.inference.prediction import LoadedModel

    data = datasets.load_from_disk(str(rows))
    if not len(data):
        return [], None
    loaded = LoadedModel(deployment.model, data, deployment.prefix)
    processes = loaded.processes(None)
    with ExitStack() as stack:
        workers = stack.enter_context(open_pool(processes, rows)) if processes > 1 else None
        return list(data[ARTIFACT_GUID]), loaded.predict(workers)


def _write(
    output: Path,
    deployment: DeploymentFolder,
    documents: Documents,
    errors: Mapping[str, str],
    guids: list[str],
    result: "ModelResult | None",
) -> None:
    """predictions.parquet, one row a document, sorted by GUID; OUTPUT.json."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = pa.array(deployment.context.labels, pa.string())
    order = sorted(documents.guids)
    row_of = {guid: row for row, guid in enumerate(guids)}
    rows = np.array([row_of.get(guid, -1) for guid in order], dtype=np.int64)
    failed = rows < 0
    columns: dict[str, pa.Array] = {"artifact_guid": pa.array(order, pa.string())}
    if result is None:
        kinds = {
            "prediction": pa.string(),
            "probability": pa.float32(),
            "probabilities": pa.list_(pa.float32()),
            "tokens": pa.int32(),
        }
        columns |= {name: pa.nulls(len(order), kind) for name, kind in kinds.items()}
    else:
        probabilities = result.probabilities.astype(np.float32)[rows]
        predicted = result.predictions[rows]
        ends = np.concatenate([[0], np.cumsum(np.where(failed, 0, len(labels)))]).astype(np.int32)
        columns |= {
            "prediction": labels.take(pa.array(predicted, mask=failed)),
            "probability": pa.array(probabilities[np.arange(len(rows)), predicted], mask=failed),
            "probabilities": pa.ListArray.from_arrays(
                pa.array(ends), probabilities[~failed].reshape(-1), mask=pa.array(failed)
            ),
            "tokens": pa.nulls(len(order), pa.int32())
            if result.tokens is None
            else pa.array(result.tokens[rows].astype(np.int32), mask=failed),
        }
    accepted = (
        None if result is None else deployment.accepts(result.probabilities.astype(np.float32).astype(np.float64))
    )
    columns["accepted"] = (
        pa.nulls(len(order), pa.bool_()) if accepted is None else pa.array(accepted[rows], pa.bool_(), mask=failed)
    )
    reasons = [errors.get(guid, LEFT_OUT) if bad else None for guid, bad in zip(order, failed, strict=True)]
    columns["error"] = pa.array(reasons, pa.string())
    table = pa.table(columns)
    pq.write_table(table, output / names.PREDICTIONS, compression="zstd")
    answers = [table[name].to_pylist() for name in ("artifact_guid", "prediction", "error")]
    facts = {"documents": len(order), "errors": int(failed.sum())}
    write_output(output, COMMAND, digest(["prediction", answers]), facts)
