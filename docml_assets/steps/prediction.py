"""Documents without labels, classified by a model of a finished run: one job, one table.

    run_<N>/predictions/<id>/   predictions.parquet, documents.parquet (the versions of the documents), MANIFEST.json
                                while the job needs them: documents/ (copies), parts/ (what is finished)

Where units are the model's documents, predictions.parquet is about artifacts and unit_predictions.parquet about their units.
<id> hashes the deployment folder (so the model and its functions) and the documents' versions: the same documents again launch no job,
documents that an earlier table has in the same version are taken from it, and a prediction that was cut off goes on where it stopped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from docml_assets.report.schema import read_report
from docml_assets.steps.deployment import (
    choose_model,
    manifest_sha256,
    read_context,
    read_deployment,
    read_use_case,
    reported_policy,
)
from docml_assets.steps.documents import DocumentSet, choose_files, copy_documents, documents_of, process_documents
from docml_assets.steps.specs import prediction_spec
from docml_assets.steps.units import combine_predictions, units_with_known
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
    UNIT_PREDICTIONS,
)
from docml_contract.units import artifact_of, document_guid, files_of_unit, units_in
from resources.jobs.interface import JobResult
from resources.store.manifests import check_finished, read_manifest

SCHEMA = schema_of({name: kind for name, (kind, _) in PREDICTION_COLUMNS.items()})
VERSION = "version"
NO_UNIT = "the document has no unit: none of its files fits a pattern of MODEL_INPUT_FILES = {}"
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
    code = read_use_case(work, model)
    if code is not None:
        documents = choose_files(code, work.environment, documents)
    identity = prediction_id(deployment, documents)
    folder = work.place.prediction(identity)
    manifest = read_manifest(work.store, folder)
    if manifest is not None:
        check_finished(work.store, manifest, folder, deep=True)
        table = read_parquet(work.store.get(f"{folder}/{PREDICTIONS}"))
        return PredictionResult(folder, manifest, table, context.labels, known=table.num_rows)
    known, known_units = _known_rows(work, deployment, documents)
    new = documents.without(known["artifact_guid"].to_pylist())
    if known.num_rows:
        work.reporter.say(f"{known.num_rows:,} of {len(documents):,} documents were classified before, in this version")
    staged = f"{folder}/{STAGED_DOCUMENTS}"
    errors = dict(new.errors)
    errors |= copy_documents(work, new, staged)
    if context.has_process_func:
        errors |= process_documents(work, new, staged, errors)
    jobs: tuple[JobResult, ...] = ()
    tables = [known]
    artifacts = _artifacts(work, new, staged, errors, units=code is not None and code.units)
    answered = set(artifacts["artifact_guid"].to_pylist())
    for guid in new.files.keys() - errors.keys() - set(map(artifact_of, answered)):
        errors[guid] = NO_UNIT.format(", ".join(work.settings.model_input_files))
    tables.append(_error_rows(errors))
    if answered:
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
        tables.append(_predicted(work, jobs[0], answered))
    units: pa.Table | None = None
    if code is not None and code.units:
        asked = pa.concat_tables(tables[1:])
        policy = reported_policy(work, model)
        tables = [known, combine_predictions(code, work.environment, context.labels, asked, policy)]
        units = units_with_known(asked, known_units)
    table = pa.concat_tables(tables).sort_by("artifact_guid")
    versions = documents.versions
    manifest = work.publish(
        CLASSIFIED_DOCUMENTS,
        folder,
        {
            PREDICTIONS: parquet_bytes(table),
            **({UNIT_PREDICTIONS: parquet_bytes(units)} if units is not None else {}),
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


def _known_rows(work: Work, deployment: Manifest, documents: DocumentSet) -> tuple[pa.Table, list[pa.Table]]:
    """The answers about documents that were classified before in the same version, out of the newest tables of the same model; and those
    about their units, where they have any.

    Documents without an answer are tried again: what failed may have been a moment's trouble.
    """
    wanted = documents.versions
    tables, units = [SCHEMA.empty_table()], list[pa.Table]()
    for folder, manifest in find_predictions(work, deployment)[:EARLIER_TABLES]:
        if not wanted:
            break
        if DOCUMENTS not in {entry.path for entry in manifest.files}:
            continue  # of before there were any
        try:
            check_finished(work.store, manifest, folder, deep=True)
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
            if UNIT_PREDICTIONS in {entry.path for entry in manifest.files}:
                of_units = read_parquet(work.store.get(f"{folder}/{UNIT_PREDICTIONS}"))
                taken = tables[-1]["artifact_guid"].combine_chunks()
                units.append(of_units.filter(pc.is_in(of_units["artifact_guid"], value_set=taken)))
            for guid in tables[-1]["artifact_guid"].to_pylist():
                del wanted[guid]
    return pa.concat_tables(tables), units


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
            f"({work.store.uri(prefix)}); expected one row per document: delete that folder, then predict again"
        )
    return table


def prediction_id(deployment: Manifest, documents: DocumentSet) -> str:
    """16 hex digits: the model with its functions, and what is known of every document."""
    return short(digest([PREDICTION, deployment.data_version, documents.versions, dict(documents.errors)]))


def _artifacts(work: Work, documents: DocumentSet, staged: str, errors: Mapping[str, str], *, units: bool) -> pa.Table:
    """artifacts.parquet: one row a file that encode_data gets; a document without any has a row without a file.

    units: whether the documents of the model are those documents' units; one without any has no row then.
    """
    wanted = work.settings.model_input_files
    found: dict[str, list[str]] = {guid: [] for guid in documents.files if guid not in errors}
    for stored in work.store.list(staged):
        guid, file = stored.key.removeprefix(f"{staged}/").split("/", 1)
        if guid in found and any(matches(file, entry) for entry in wanted):
            found[guid].append(file)
    rows: list[tuple[str, str | None, str | None]] = []  # GUID, unit, file
    for guid, files in found.items():
        if units:
            rows += [
                (guid, unit, file) for unit in units_in(files, wanted) for file in files_of_unit(files, wanted, unit)
            ]
        else:
            rows += [(guid, None, file) for file in files] or [(guid, None, None)]
    copied = {(guid, file): stored.etag for guid, own in documents.files.items() for file, stored in own.items()}
    return pa.table(
        {
            "artifact_guid": pa.array([document_guid(guid, unit) for guid, unit, _ in rows], pa.string()),
            "label": pa.array([""] * len(rows), pa.string()),
            "group": pa.nulls(len(rows), pa.string()),
            "file": pa.array([file for *_, file in rows], pa.string()),
            "path": pa.array([f"{guid}/{file}" if file else None for guid, _, file in rows], pa.string()),
            "etag": pa.array([copied.get((guid, file or "")) for guid, _, file in rows], pa.string()),
        }
    )


def _error_rows(errors: Mapping[str, str]) -> pa.Table:
    rows: list[dict[str, Any]] = [{"artifact_guid": guid, "error": reason} for guid, reason in errors.items()]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
