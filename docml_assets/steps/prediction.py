"""Documents without labels, classified by a model of a finished run: one job, one table.

    run_<N>/predictions/<id>/   predictions.parquet, documents.parquet (the versions of the documents), MANIFEST.json
                                while the job needs them: documents/ (copies), parts/ (what is finished)

<id> hashes the deployment folder (so the model and its functions) and the documents' versions: the same documents again launch no job,
documents that an earlier table has in the same version are taken from it, and a prediction that was cut off goes on where it stopped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from docml_assets.report.schema import read_report
from docml_assets.steps.deployment import choose_model, manifest_sha256, read_context, read_deployment
from docml_assets.steps.documents import DocumentSet, documents_of
from docml_assets.steps.specs import prediction_spec
from docml_assets.steps.work import Outcome, Work
from docml_assets.tables import parquet_bytes, read_parquet, schema_of
from docml_contract.base import IncompleteArtifact, UnreadableDocument, digest, short
from docml_contract.file_names import matches
from docml_contract.jobs import Channel
from docml_contract.manifests import Manifest, cache_key
from docml_contract.names import (
    ARTIFACTS_TABLE,
    CLASSIFIED_DOCUMENTS,
    DEPLOYMENT,
    DOCUMENTS,
    PREDICTION,
    PREDICTION_COLUMNS,
    PREDICTION_PARTS,
    PREDICTIONS,
    STAGED_DOCUMENTS,
)
from docml_contract.untrusted_files import MARKER
from resources.jobs.interface import JobResult
from resources.store.manifests import check_finished, read_manifest

SCHEMA = schema_of({name: kind for name, (kind, _) in PREDICTION_COLUMNS.items()})
VERSION = "version"
EARLIER_TABLES = 20  # that are looked at for documents which were classified before


@dataclass(frozen=True)
class PredictionResult:
    """A finished prediction. jobs: what was launched for it. known: how many documents had been classified before."""

    folder: str
    manifest: Manifest
    table: pa.Table
    labels: tuple[str, ...]
    jobs: tuple[JobResult, ...] = ()
    known: int = 0

    @property
    def errors(self) -> int:
        """Documents without an answer."""
        return self.table.num_rows - int(self.table["error"].null_count)


def run_prediction(work: Work, query: str | None, model: str | None) -> Outcome | None:
    """Classify the documents of production that the query (none: PREDICT_QUERY) names. None, and said, where there is no query.

    model: none: the run's only one, or the best one of its report.
    """
    asked = query or work.settings.predict_query
    if asked is None:
        work.reporter.say("nothing is classified: the run has no PREDICT_QUERY, and no query was given as run config")
        return None
    if model is None and work.settings.is_comparison:
        model = read_report(work.store, work.place).best_model
    documents = documents_of(work, asked)
    for note in documents.notes:
        work.reporter.say(note)
    result = predict_documents(work, choose_model(work, model), documents)
    why = (
        f"{len(documents):,} documents, {result.known:,} of them classified before; {result.errors:,} without an answer"
    )
    return Outcome.of(
        work, result.manifest, result.folder, how="made" if result.jobs else "finished", why=why, jobs=result.jobs
    )


def newest_prediction(work: Work) -> str | None:
    """The folder of the newest finished table of any model of the run."""
    manifests = {
        name: read_manifest(work.store, work.place.prediction(name))
        for name in work.store.list_folders(work.place.predictions)
    }
    found = {name: manifest.created_at for name, manifest in manifests.items() if manifest is not None}
    return work.place.prediction(max(found, key=lambda name: found[name])) if found else None


def predict_documents(work: Work, model: str, documents: DocumentSet) -> PredictionResult:
    """Classify the documents with the run's model, or take the table that says so already.

    Only documents that no earlier table of this model has in the same version go through a job.
    """
    deployment = read_deployment(work, model)
    context = read_context(work, model)
    identity = prediction_id(deployment, documents)
    folder = work.place.prediction(identity)
    manifest = read_manifest(work.store, folder)
    if manifest is not None:
        check_finished(work.store, manifest, folder)
        table = read_parquet(work.store.get(f"{folder}/{PREDICTIONS}"))
        return PredictionResult(folder, manifest, table, context.labels, known=table.num_rows)
    known = _known_rows(work, deployment, documents)
    new = documents.without(known["artifact_guid"].to_pylist())
    if known.num_rows:
        work.reporter.say(f"{known.num_rows:,} of {len(documents):,} documents were classified before, in this version")
    staged = f"{folder}/{STAGED_DOCUMENTS}"
    errors = dict(new.errors)
    errors |= _copy(work, new, staged)
    if context.has_process_func:
        errors |= _process(work, new, staged, errors)
    jobs: tuple[JobResult, ...] = ()
    tables = [known, _error_rows(errors)]
    if len(errors) < len(new):
        artifacts = _artifacts(work, new, staged, errors)
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
        tables.append(_predicted(work, jobs[0], set(new.files) - set(errors)))
    table = pa.concat_tables(tables).sort_by("artifact_guid")
    versions = documents.versions
    manifest = work.publish(
        CLASSIFIED_DOCUMENTS,
        folder,
        {
            PREDICTIONS: parquet_bytes(table),
            DOCUMENTS: parquet_bytes(
                pa.table(
                    {
                        "artifact_guid": pa.array(versions.keys(), pa.string()),
                        VERSION: pa.array(versions.values(), pa.string()),
                    }
                )
            ),
        },
        cache_key=cache_key(CLASSIFIED_DOCUMENTS, id=identity),
        data_version=digest(
            [PREDICTION, [table[name].to_pylist() for name in ("artifact_guid", "prediction", "error")]]
        ),
        inputs={DEPLOYMENT: deployment.data_version},
    )
    for leftover in (staged, work.place.finished_parts(identity)):
        work.store.delete([stored.key for stored in work.store.list(leftover)])
    return PredictionResult(folder, manifest, table, context.labels, jobs, known=known.num_rows)


def find_predictions(work: Work, deployment: Manifest) -> list[tuple[str, Manifest]]:
    """(folder, manifest) of the finished predictions of a deployment folder, newest first."""
    root = work.place.predictions
    found = []
    for name in work.store.list_folders(root):
        try:
            manifest = read_manifest(work.store, f"{root}/{name}")
        except UnreadableDocument as error:
            work.reporter.say(f"earlier predictions cannot be used: {error}")
            continue
        if manifest is not None and manifest.inputs.get(DEPLOYMENT) == deployment.data_version:
            found.append((f"{root}/{name}", manifest))
    return sorted(found, key=lambda entry: entry[1].created_at, reverse=True)


def _known_rows(work: Work, deployment: Manifest, documents: DocumentSet) -> pa.Table:
    """The answers about documents that were classified before in the same version, out of the newest tables of the same model.

    Documents without an answer are tried again: what failed may have been a moment's trouble.
    """
    wanted = documents.versions
    tables = [SCHEMA.empty_table()]
    for folder, manifest in find_predictions(work, deployment)[:EARLIER_TABLES]:
        if not wanted:
            break
        if DOCUMENTS not in {entry.path for entry in manifest.files}:
            continue  # of before there were any
        try:
            check_finished(work.store, manifest, folder)
        except IncompleteArtifact as error:
            work.reporter.say(f"earlier predictions cannot be used: {error}")
            continue
        versions = read_parquet(work.store.get(f"{folder}/{DOCUMENTS}"))
        same = [
            guid
            for guid, version in zip(versions["artifact_guid"].to_pylist(), versions[VERSION].to_pylist(), strict=True)
            if wanted.get(guid) == version
        ]
        if same:
            table = read_parquet(work.store.get(f"{folder}/{PREDICTIONS}")).select(SCHEMA.names).cast(SCHEMA)
            answered = pc.and_(
                pc.is_null(table["error"]),
                pc.is_in(table["artifact_guid"], value_set=pa.array(same, pa.string())),
            )
            tables.append(table.filter(answered))
            for guid in tables[-1]["artifact_guid"].to_pylist():
                del wanted[guid]
    return pa.concat_tables(tables)


def _predicted(work: Work, job: JobResult, expected: set[str]) -> pa.Table:
    """What the hosts of a job handed over, a table each. IncompleteArtifact unless each document is there once."""
    prefix = f"{job.output_prefix}/{PREDICTION_PARTS}"
    tables = [
        read_parquet(work.store.get(stored.key)).select(SCHEMA.names).cast(SCHEMA) for stored in work.store.list(prefix)
    ]
    table = pa.concat_tables([SCHEMA.empty_table(), *tables])
    found = table["artifact_guid"].to_pylist()
    if len(found) != len(expected) or set(found) != expected:
        raise IncompleteArtifact(
            f"job {job.name} handed over {len(found):,} rows for {len(set(found) & expected):,} of {len(expected):,} documents "
            f"({work.store.uri(prefix)}); expected one row a document: delete that folder, then predict again"
        )
    return table


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
