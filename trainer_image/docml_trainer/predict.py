"""Predict documents without labels: `python -m docml_trainer predict`.

    processing/input/spec           spec.json, artifacts.parquet (as a preparation's, with empty labels)
    processing/input/deployment     the model's deployment folder
    processing/input/documents      <guid>/<file>
    processing/input/checkpoints    parts that an earlier attempt finished (locally they lie in processing/checkpoints at once)
    processing/checkpoints          part-<host>-<position>.parquet: finished parts, synced with the store while the job runs
    processing/output/result        predictions/<host>.parquet, OUTPUT.json

Documents go the way of a test split: encode_data as it was frozen, the collator, the TorchScript file. One that cannot be encoded
becomes a row with an error. They go in parts, so that memory does not grow with them and a job that is killed keeps what it has done; while
one part is predicted, the next one is encoded. Several hosts share the documents.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from docml_contract import names
from docml_contract.base import digest
from docml_contract.jobs import PredictTask
from docml_contract.log_lines import PROGRESS, format_event
from docml_contract.manifests import write_output
from docml_trainer.container import Folders
from docml_trainer.errors import FolderError
from docml_trainer.inference.model import DeploymentFolder
from docml_trainer.preparation.documents import Documents, read_documents
from docml_trainer.preparation.parts import KeptParts
from docml_trainer.preparation.pool import BATCH, encode, stuck_seconds
from docml_trainer.preparation.worker import EncodingPlan

if TYPE_CHECKING:
    from docml_trainer.inference.prediction import LoadedModel, ModelResult

COMMAND = "predict"
LEFT_OUT = "encode_data returned None: the document is left out"
PART_DOCUMENTS = 8192


@dataclass(frozen=True)
class EncodedPart:
    """Some of the documents, encoded: the data set of those that the model takes, and why it does not take others, by GUID."""

    documents: Documents
    rows: Path
    errors: Mapping[str, str]


def main(folders: Folders) -> None:
    """Verify, then encode and predict part by part, and write one table."""
    task = folders.spec().task
    if not isinstance(task, PredictTask):
        raise FolderError(f"the spec's task is {task.command!r}; expected {COMMAND!r}")
    hosts = folders.resource_config()
    deployment = DeploymentFolder.open(folders.channel("deployment"), task.manifest_sha256)
    documents = read_documents(folders.channel("spec") / names.ARTIFACTS_TABLE, deployment.encoding_task(None))
    mine = documents.part(hosts.index, len(hosts.hosts))
    parts = FinishedParts(folders, hosts.index, {documents.guids[position] for position in mine})
    left = [position for position in mine if documents.guids[position] not in parts.guids]
    if len(left) < len(mine):
        print(f"{len(mine) - len(left):,} of {len(mine):,} documents were predicted by an earlier attempt", flush=True)
    scratch = folders.base / "processing" / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    model: LoadedModel | None = None
    try:
        for first, part in _encoded(folders, task, deployment, documents, left, scratch):
            model, table = _answer(deployment, model, part)
            parts.add(first, table)
            shutil.rmtree(part.rows.parent)
            print(
                format_event(PROGRESS, what="predicted", done=len(parts.guids), total=len(mine), unit="documents"),
                flush=True,
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    facts = parts.write(folders.output / names.PREDICTION_PARTS)
    if hosts.index == 0:
        write_output(folders.output, COMMAND, digest(["prediction", documents.digest]), facts)


class FinishedParts:
    """The parts of one host that are done; a file each, kept in the store while the job runs."""

    def __init__(self, folders: Folders, host: int, wanted: set[str]) -> None:
        self._folder = folders.checkpoints
        self._host = host
        self._files: dict[str, Path] = {}
        self.guids: set[str] = set()
        for path in sorted([*folders.channel("checkpoints").glob("*.parquet"), *self._folder.glob("*.parquet")]):
            with contextlib.suppress(pa.ArrowException, OSError):  # a half file is no part
                guids = set(pq.read_table(path, columns=["artifact_guid"])["artifact_guid"].to_pylist())
                if guids <= wanted and not guids & self.guids:
                    self._files[path.name] = path
                    self.guids |= guids

    def add(self, first: int, table: pa.Table) -> None:
        """Keep a part, which begins with the document at the position `first`."""
        path = self._folder / f"part-{self._host}-{first:09d}.parquet"
        draft = path.with_name(f".{path.name}")
        pq.write_table(table, draft, compression="zstd")
        draft.replace(path)
        self._files[path.name] = path
        self.guids |= set(table["artifact_guid"].to_pylist())

    def write(self, folder: Path) -> dict[str, int]:
        """All parts as one table, part by part; how many documents and errors there are."""
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"documents": 0, "errors": 0}
        with pq.ParquetWriter(folder / f"{self._host}.parquet", SCHEMA, compression="zstd") as writer:
            for path in self._files.values():
                table = pq.read_table(path).cast(SCHEMA)
                writer.write_table(table)
                facts["documents"] += table.num_rows
                facts["errors"] += table.num_rows - table["error"].null_count
        return facts


def _arrow_type(kind: str) -> pa.DataType:
    """A type as the contract names it."""
    single = pa.type_for_alias(kind.removesuffix("[]"))
    return pa.list_(single) if kind.endswith("[]") else single


SCHEMA = pa.schema([(name, _arrow_type(kind)) for name, (kind, _) in names.PREDICTION_COLUMNS.items()])


def _encoded(
    folders: Folders,
    task: PredictTask,
    deployment: DeploymentFolder,
    documents: Documents,
    left: Sequence[int],
    scratch: Path,
) -> Iterator[tuple[int, EncodedPart]]:
    """(first position, part) of all that is left; while the caller works on a part the next one is encoded."""
    chunks = [left[start : start + PART_DOCUMENTS] for start in range(0, len(left), PART_DOCUMENTS)]

    def encode_part(number: int) -> EncodedPart:
        folder = scratch / str(number)
        folder.mkdir()
        return _encode(folders, task, deployment, documents.take(chunks[number]), folder)

    with ThreadPoolExecutor(1, thread_name_prefix="encoding") as thread:
        coming: Future[EncodedPart] | None = thread.submit(encode_part, 0) if chunks else None
        for number, chunk in enumerate(chunks):
            assert coming is not None
            part = coming.result()
            coming = thread.submit(encode_part, number + 1) if number + 1 < len(chunks) else None
            yield chunk[0], part


def _encode(
    folders: Folders, task: PredictTask, deployment: DeploymentFolder, documents: Documents, folder: Path
) -> EncodedPart:
    """Write the encoded documents into `folder`."""
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

    parts = encode(
        documents,
        range(len(documents)),
        plan,
        KeptParts.of_one_attempt(folder),
        processes=processes,
        stuck_seconds=stuck_seconds(),
        progress=progress,
    )
    import datasets

    from docml_trainer.preparation.rows import write_unlabelled

    datasets.disable_progress_bars()
    reports = [part.read_report() for part in parts]
    declared = datasets.Features.from_dict(reports[0]["features"])
    write_unlabelled([part.rows for part in parts], documents, declared, folder / "rows")
    for part in parts:
        part.rows.unlink()
    failures = [failure for report in reports for failure in report["tally"]["failures"]]
    rows, misfits = _fitting(deployment, folder / "rows")
    errors = {failure["artifact_guid"]: f"{failure['file']}: {failure['error']}" for failure in failures}
    return EncodedPart(documents, rows, errors | misfits)


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


def _answer(
    deployment: DeploymentFolder, model: "LoadedModel | None", part: EncodedPart
) -> "tuple[LoadedModel | None, pa.Table]":
    """The model, loaded at the first documents that it gets, and the part's rows, sorted by GUID."""
    import datasets

    from docml_trainer.data.shapes import ARTIFACT_GUID
    from docml_trainer.inference.pool import open_pool
    from docml_trainer.inference.prediction import LoadedModel

    data = datasets.load_from_disk(str(part.rows))
    if not len(data):
        return model, _table(deployment, part, [], None)
    loaded = LoadedModel(deployment.model, data, deployment.prefix) if model is None else model.over(data)
    processes = loaded.processes(None)
    with ExitStack() as stack:
        workers = stack.enter_context(open_pool(processes, part.rows)) if processes > 1 else None
        result = loaded.predict(workers)
    return (None if processes > 1 else loaded), _table(deployment, part, list(data[ARTIFACT_GUID]), result)


def _table(
    deployment: DeploymentFolder, part: EncodedPart, guids: Sequence[str], result: "ModelResult | None"
) -> pa.Table:
    """One row a document, sorted by GUID. guids: of the documents that have an answer, in the order of `result`."""
    import numpy as np

    labels = pa.array(deployment.context.labels, pa.string())
    order = sorted(part.documents.guids)
    row_of = {guid: row for row, guid in enumerate(guids)}
    rows = np.array([row_of.get(guid, -1) for guid in order], dtype=np.int64)
    failed = rows < 0
    reasons = [part.errors.get(guid, LEFT_OUT) if bad else None for guid, bad in zip(order, failed, strict=True)]
    columns = {name: pa.nulls(len(order), SCHEMA.field(name).type) for name in SCHEMA.names}
    columns |= {"artifact_guid": pa.array(order, pa.string()), "error": pa.array(reasons, pa.string())}
    if result is not None:
        probabilities = result.probabilities.astype(np.float32)[rows]
        predicted = result.predictions[rows]
        ends = np.concatenate([[0], np.cumsum(np.where(failed, 0, len(labels)))]).astype(np.int32)
        columns |= {
            "prediction": labels.take(pa.array(predicted, mask=failed)),
            "probability": pa.array(probabilities[np.arange(len(rows)), predicted], mask=failed),
            "probabilities": pa.ListArray.from_arrays(
                pa.array(ends), probabilities[~failed].reshape(-1), mask=pa.array(failed)
            ),
        }
        if result.tokens is not None:
            columns["tokens"] = pa.array(result.tokens[rows].astype(np.int32), mask=failed)
        if (accepted := deployment.accepts(probabilities.astype(np.float64))) is not None:
            columns["accepted"] = pa.array(accepted, pa.bool_(), mask=failed)
    return pa.table(columns, schema=SCHEMA)
