"""Documents without labels, classified by a model of a finished run: one job, one table.

    run_<N>/predictions/<id>/   predictions.parquet, MANIFEST.json; `documents/` while the job needs them

<id> hashes the deployment folder (so the model and its functions) and the documents' versions: the same documents again launch no job, and
a prediction that was cut off goes on where it stopped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from docml_assets.steps.deployment import manifest_sha256, read_context, read_deployment
from docml_assets.steps.documents import DocumentSet
from docml_assets.steps.specs import prediction_spec
from docml_assets.steps.work import Work
from docml_assets.tables import parquet_bytes, read_parquet
from docml_contract.base import digest, short
from docml_contract.file_names import matches
from docml_contract.jobs import Channel
from docml_contract.manifests import Manifest, cache_key
from docml_contract.names import ARTIFACTS_TABLE, DEPLOYMENT, PREDICTION, PREDICTIONS
from docml_contract.sandbox import MARKER
from resources.jobs.interface import JobResult
from resources.store.manifests import check_finished, read_manifest

SCHEMA = pa.schema(
    [
        ("artifact_guid", pa.string()),
        ("prediction", pa.string()),
        ("probability", pa.float32()),
        ("probabilities", pa.list_(pa.float32())),
        ("accepted", pa.bool_()),
        ("error", pa.string()),
        ("tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class PredictionResult:
    """A finished prediction. jobs: what was launched for it, nothing where it was there already."""

    folder: str
    manifest: Manifest
    table: pa.Table
    labels: tuple[str, ...]
    jobs: tuple[JobResult, ...] = ()

    @property
    def errors(self) -> int:
        """Documents without an answer."""
        return self.table.num_rows - int(self.table["error"].null_count)


def predict_documents(work: Work, model: str, documents: DocumentSet) -> PredictionResult:
    """Classify the documents with the run's model, or take the table that says so already."""
    deployment = read_deployment(work, model)
    context = read_context(work, model)
    identity = prediction_id(deployment, documents)
    folder = work.place.prediction(identity)
    manifest = read_manifest(work.store, folder)
    if manifest is not None:
        check_finished(work.store, manifest, folder)
        table = read_parquet(work.store.get(f"{folder}/{PREDICTIONS}"))
        return PredictionResult(folder, manifest, table, context.labels)
    errors = dict(documents.errors)
    staged = f"{folder}/documents"
    errors |= _copy(work, documents, staged)
    if context.has_process_func:
        errors |= _process(work, documents, staged, errors)
    jobs: tuple[JobResult, ...] = ()
    tables = [_error_rows(errors)]
    if len(errors) < len(documents):
        artifacts = _artifacts(work, documents, staged, errors)
        files = {ARTIFACTS_TABLE: parquet_bytes(artifacts)}
        spec = prediction_spec(
            work,
            deployment=work.place.deployment(model),
            manifest_sha256=manifest_sha256(work, model),
            documents=Channel(
                name="documents", prefix=staged, files=tuple(pc.drop_null(artifacts["path"]).to_pylist())
            ),
            piece=identity,
            files=files,
            inputs={DEPLOYMENT: deployment.data_version},
        )
        jobs = (work.jobs.run(spec, files, holder=work.holder, listener=work.reporter.listener(None)),)
        tables.append(
            read_parquet(work.store.get(f"{jobs[0].output_prefix}/{PREDICTIONS}")).select(SCHEMA.names).cast(SCHEMA)
        )
    table = pa.concat_tables(tables).sort_by("artifact_guid")
    manifest = work.publish(
        PREDICTION,
        folder,
        {PREDICTIONS: parquet_bytes(table)},
        cache_key=cache_key(PREDICTION, id=identity),
        data_version=digest(
            [PREDICTION, [table[name].to_pylist() for name in ("artifact_guid", "prediction", "error")]]
        ),
        inputs={DEPLOYMENT: deployment.data_version},
    )
    work.store.delete([stored.key for stored in work.store.list(staged)])
    return PredictionResult(folder, manifest, table, context.labels, jobs)


def prediction_id(deployment: Manifest, documents: DocumentSet) -> str:
    """16 hex digits: the model with its functions, and what is known of every document."""
    return short(digest([PREDICTION, deployment.data_version, documents.versions, dict(documents.errors)]))


def _copy(work: Work, documents: DocumentSet, staged: str) -> dict[str, str]:
    """Copy the documents' files; why some could not be copied, by GUID."""
    there = {stored.key: stored.size for stored in work.store.list(staged)}
    pairs = {
        f"{staged}/{guid}/{file}": (guid, source.key)
        for guid, files in documents.files.items()
        for file, source in files.items()
        if there.get(f"{staged}/{guid}/{file}") != source.size
    }
    done = 0

    def copied() -> None:
        nonlocal done
        done += 1
        work.reporter.progress("files copied", done, len(pairs))

    gone = work.store.copy_many(documents.source, [(key, target) for target, (_, key) in pairs.items()], copied=copied)
    return {pairs[lost.target][0]: f"{lost.source} has gone while it was copied" for lost in gone}


def _process(work: Work, documents: DocumentSet, staged: str, errors: Mapping[str, str]) -> dict[str, str]:
    """Let process_func make its files anew, in the sandboxed workers of reconciliation; why it failed, by GUID."""
    from docml_assets.reconcile.process import ArtifactTask, cores, process_artifacts

    done = {
        stored.key.split("/")[-2] for stored in work.store.list(staged) if stored.key.split("/")[-1].startswith(MARKER)
    }
    tasks = [
        ArtifactTask({"artifact_guid": guid, **documents.rows.get(guid, {})}, f"{staged}/{guid}", tuple(files))
        for guid, files in documents.files.items()
        if guid not in errors and guid not in done
    ]
    finished = 0

    def processed() -> None:
        nonlocal finished
        finished += 1
        work.reporter.progress("artifacts processed", finished, len(tasks))

    if not tasks:
        return {}
    failures = process_artifacts(
        tasks,
        store=work.store,
        functions_source=work.functions_source,
        environment=work.environment,
        processes=min(work.settings.reconciliation_processes or cores(), len(tasks)),
        processed=processed,
    )
    return {failure.artifact_guid: failure.reason for failure in failures}


def _artifacts(work: Work, documents: DocumentSet, staged: str, errors: Mapping[str, str]) -> pa.Table:
    """artifacts.parquet: one row a file that encode_data gets; a document without any has a row without a file."""
    wanted = work.settings.model_input_files
    found: dict[str, list[str]] = {guid: [] for guid in documents.files if guid not in errors}
    for stored in work.store.list(staged):
        guid, file = stored.key.removeprefix(f"{staged}/").split("/", 1)
        if guid in found and any(matches(file, entry) for entry in wanted):
            found[guid].append(file)
    rows: list[tuple[str, str | None]] = []
    for guid, files in found.items():
        rows += [(guid, file) for file in files] or [(guid, None)]
    copied = {(guid, file): stored.etag for guid, own in documents.files.items() for file, stored in own.items()}
    return pa.table(
        {
            "artifact_guid": pa.array([guid for guid, _ in rows], pa.string()),
            "label": pa.array([""] * len(rows), pa.string()),
            "group": pa.nulls(len(rows), pa.string()),
            "file": pa.array([file for _, file in rows], pa.string()),
            "path": pa.array([f"{guid}/{file}" if file else None for guid, file in rows], pa.string()),
            "etag": pa.array([copied.get((guid, file or "")) for guid, file in rows], pa.string()),
        }
    )


def _error_rows(errors: Mapping[str, str]) -> pa.Table:
    rows: list[dict[str, Any]] = [{"artifact_guid": guid, "error": reason} for guid, reason in errors.items()]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
