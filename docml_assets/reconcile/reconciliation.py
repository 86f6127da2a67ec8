"""Reconciliation from end to end: fetch and list, join, copy, process, verify, repair."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from docml_assets.experiment.functions import defined_functions
from docml_assets.experiment.settings.settings import Settings
from docml_assets.experiment.source import functions_digest
from docml_assets.experiment.use_case import UseCase
from docml_assets.reconcile.copies import Copies, Log, Progress, ProgressMeter, Sources, copy_until_settled, with_etags
from docml_assets.reconcile.findings import (
    NothingLeft,
    ReconciliationError,
    ReconciliationFindings,
    TooManyFailures,
    findings_table,
)
from docml_assets.reconcile.plan import (
    CHUNK,
    VERSION,
    Recipe,
    ReconciliationPlan,
    artifact_files,
    key_below,
    lacking_files,
    not_planned,
    to_process,
)
from docml_assets.reconcile.process import ArtifactFailure, ArtifactTask, cores, process_artifacts, remove_abandoned
from docml_assets.reconcile.use_case import UseCaseAtWork
from docml_contract.base import canonical_json, digest
from docml_contract.names import RunPlace
from docml_contract.sandbox import find_exposure
from docml_contract.untrusted_files import MARKER
from resources.label_values import column_named
from resources.labels import LabelSource
from resources.store import Store

FAILURES = "failures.jsonl"
TABLE_COLUMNS = ["artifact_guid", "label", "file_hash", "file", "key", "size", "etag", "source_etag", "origin"]
PROCESS_FUNC = "process_func"


@dataclass(frozen=True)
class ReconciliationInputs:
    """What a reconciliation works with: a run and its frozen content, the outside world, and whom to tell."""

    place: RunPlace
    settings: Settings
    functions_source: str
    store: Store
    production: Store
    labels: LabelSource
    environment: Mapping[str, str]
    log: Log
    progress: Progress
    use_case: UseCase | None = None

    def sources(self) -> Sources:
        """Both sides, and what decides versions besides the source files."""
        settings, source = self.settings, self.functions_source
        with_process = PROCESS_FUNC in defined_functions(source)
        return Sources(
            labels=self.labels,
            query=settings.labels_query,
            max_rows=settings.max_label_rows,
            production=self.production,
            store=self.store,
            base=self.place.shared.reconciled_artifacts,
            recipe=Recipe(
                files_from_prod=tuple(sorted(set(settings.files_from_prod))),
                files_on_research=tuple(sorted(set(settings.files_on_research))),
                process_digest=functions_digest(source, [PROCESS_FUNC]) if with_process else None,
                overwrite_run=self.place.number if settings.overwrite else None,
                files_optional=tuple(sorted(set(settings.files_optional))),
            ),
            use_case=UseCaseAtWork(self.use_case, self.environment) if self.use_case else None,
        )


@dataclass(frozen=True)
class ReconciledArtifacts:
    """table: one row a file, TABLE_COLUMNS. label_rows: the kept rows with all columns of the query. units: artifact_guid, unit and label
    of the documents where these are parts of artifacts. seconds: wall clock."""

    table: pa.Table
    label_rows: pa.Table
    units: pa.Table | None
    findings: ReconciliationFindings
    data_version: str
    bytes_copied: int
    seconds: float

    @property
    def funnel(self) -> dict[str, int]:
        """Stage -> count."""
        return self.findings.funnel

    @property
    def problems(self) -> dict[str, pa.Table]:
        """Name -> what was left out or needs a look."""
        return self.findings.problems


@dataclass
class _Step:
    """One reconciliation on its way: what it works with, and what process_func did so far."""

    inputs: ReconciliationInputs
    sources: Sources
    processed: int = 0
    processed_again: int = 0
    failures: list[ArtifactFailure] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        """What decides versions."""
        return self.sources.recipe

    @property
    def base(self) -> str:
        """Where artifacts lie in the store."""
        return self.sources.base


def reconcile(inputs: ReconciliationInputs) -> ReconciledArtifacts:
    """Bring labels and production files together below `<experiment>/data/reconciled_artifacts`.

    Writes versioned artifact files only, each of them once, so that it can be killed at any moment and started again; files of
    another version are never touched. Raises ReconciliationError and its kin, LabelError, StoreError.
    """
    started = time.monotonic()
    remove_abandoned()  # even if nothing is left to process: a command that was killed at its last artifact left its folder
    step = _Step(inputs, inputs.sources())
    inputs.progress("labels and files listed", 0, 1)
    listings = step.sources.ask()
    inputs.progress("labels and files listed", 1, 1)
    _check_groups(inputs.settings, listings.rows.columns)
    copies = copy_until_settled(step.sources, listings, inputs.log, inputs.progress)
    copies.existing = _process(step, copies.plan, copies.existing)
    return _result(step, copies, started)


def _check_groups(settings: Settings, columns: list[str]) -> None:
    if settings.split_by and column_named(columns, settings.split_by) is None:
        raise ReconciliationError(
            f"SPLIT_BY = {settings.split_by}, but LABELS_QUERY yields {', '.join(columns)}: select it too, or correct SPLIT_BY"
        )


def _process(step: _Step, plan: ReconciliationPlan, existing: pa.Table) -> pa.Table:
    """Let process_func make what is not there; once more for what is still missing then. Returns the store's listing after it."""
    inputs = step.inputs
    for attempt in range(2):
        files = artifact_files(plan, existing)
        pending = to_process(plan, files, step.recipe)
        failed = {failure.artifact_guid for failure in step.failures}
        pending = pending.filter(~pl.col("artifact_guid").is_in(list(failed)))
        if pending.is_empty():
            break
        if attempt:
            step.processed_again += pending.height
        inputs.log(f"process_func: {pending.height:,} artifacts")
        if not attempt and (exposure := find_exposure()):
            inputs.log(exposure)
        meter = ProgressMeter("artifacts processed", pending.height, inputs.log, inputs.progress)
        step.failures += process_artifacts(
            _tasks(step, plan, pending, files),
            store=inputs.store,
            functions_source=inputs.functions_source,
            environment=inputs.environment,
            processes=min(inputs.settings.reconciliation_processes or cores(), pending.height),
            processed=meter.tick,
        )
        step.processed += meter.done
        existing = step.sources.list_existing()
    return existing


def _tasks(step: _Step, plan: ReconciliationPlan, pending: pl.DataFrame, files: pl.DataFrame) -> Iterator[ArtifactTask]:
    made = not_planned(files, plan)
    for rows in pending.iter_slices(CHUNK):
        from_prod, already = _names_by_guid(plan.files, rows), _names_by_guid(made, rows)
        for row in rows.iter_rows(named=True):
            version = row.pop(VERSION)
            guid = row["artifact_guid"]
            folder = f"{step.base}/{guid}/{version}"
            yield ArtifactTask(row, folder, tuple(from_prod.get(guid, ())), frozenset(already.get(guid, ())))


def _names_by_guid(files: pl.DataFrame, rows: pl.DataFrame) -> dict[str, list[str]]:
    some = files.join(rows.select("artifact_guid"), on="artifact_guid", how="semi")
    return dict(some.group_by("artifact_guid").agg("file").iter_rows())


def _result(step: _Step, copies: Copies, started: float) -> ReconciledArtifacts:
    recipe, plan, findings = step.recipe, copies.plan, copies.findings
    files = artifact_files(plan, copies.existing).filter(~pl.col("file").str.starts_with(MARKER))
    failed = [
        *(
            {"artifact_guid": f.artifact_guid, "file": None, "reason": f.reason, "traceback": f.traceback}
            for f in step.failures
        ),
        *lacking_files(plan, files, recipe, {failure.artifact_guid for failure in step.failures}),
    ]
    out = {str(row["artifact_guid"]) for row in failed}
    findings.failures = findings_table("failures", failed)
    candidates = plan.artifacts.height + plan.incomplete["artifact_guid"].n_unique()
    _check_share(step, failed, out, candidates)
    artifacts = plan.artifacts.filter(~pl.col("artifact_guid").is_in(list(out)))
    if artifacts.is_empty():
        raise NothingLeft(findings.say_why_nothing_is_left())
    for example in findings.first_examples():
        step.inputs.log(example)
    table = _table(step, artifacts, files, plan)
    units, use_case = None, step.sources.use_case
    if use_case is not None:
        units = use_case.units_of(artifacts, table, step.inputs.settings.model_input_files, findings)
    if units is not None:
        kept = units["artifact_guid"].combine_chunks()
        artifacts = artifacts.filter(pl.col("artifact_guid").is_in(pl.Series(kept).unique().implode()))
        table = table.filter(pc.is_in(table["artifact_guid"], value_set=kept))
    findings.funnel |= {
        "failed": len(out),
        "copied": copies.files,
        "reused": max(0, plan.files.height - copies.files),
        "repaired": copies.repaired + step.processed_again,
        "processed": step.processed,
        "artifacts": artifacts.height,
        "files": table.num_rows,
    }
    return ReconciledArtifacts(
        table=table,
        label_rows=_arrow(artifacts.drop(VERSION)),
        findings=findings,
        units=units,
        data_version=data_version(table) if units is None else digest([data_version(table), units.to_pylist()]),
        bytes_copied=copies.bytes,
        seconds=time.monotonic() - started,
    )


def _check_share(step: _Step, failed: list[dict[str, Any]], out: set[str], candidates: int) -> None:
    if not failed:
        return
    key = f"{step.inputs.place.reconciliation}/{FAILURES}"
    step.inputs.store.put(key, b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in failed))
    allowed = step.inputs.settings.max_failed_share
    if len(out) <= allowed * candidates:
        step.inputs.log(f"{len(out)} of {candidates} artifacts are left out: {step.inputs.store.uri(key)}")
        return
    listed = "\n".join(
        f"  {row['artifact_guid']}" + (f" {row['file']}" if row["file"] else "") + f": {row['reason']}"
        for row in failed[:20]
    )
    traceback = next((f"\nThe first traceback:\n{row['traceback']}" for row in failed if row["traceback"]), "")
    raise TooManyFailures(
        f"{len(out)} of {candidates} artifacts failed or lack files, more than MAX_FAILED_SHARE = {allowed:g} allows:\n{listed}"
        + (f"\n  … and {len(failed) - 20} more" if len(failed) > 20 else "")
        + f"\nAll of them: {step.inputs.store.uri(key)}{_remedy(failed)}{traceback}"
    )


def _remedy(failed: list[dict[str, Any]]) -> str:
    """What to do where documents merely lack files."""
    lacking = dict.fromkeys(row["file"] for row in failed if row["file"])
    if not lacking:
        return ""
    return f"\nFiles that a document may lack stand in FILES_OPTIONAL: {', '.join(list(lacking)[:5])}{', …' if len(lacking) > 5 else ''}?"


def _table(step: _Step, artifacts: pl.DataFrame, files: pl.DataFrame, plan: ReconciliationPlan) -> pa.Table:
    """reconciled_manifest: one row a file, sorted by artifact_guid and file."""
    from_prod = pl.col("source_etag").is_not_null()
    rows = (
        files.with_columns(key_below(step.base).alias("key"))
        .drop("version")
        .join(
            artifacts.select("artifact_guid", "label", "file_hash", pl.col(VERSION).alias("version")),
            on="artifact_guid",
        )
        .join(plan.files.select("artifact_guid", "file", "source_etag"), on=["artifact_guid", "file"], how="left")
        .with_columns(
            pl.when(from_prod).then(pl.lit("prod")).otherwise(pl.lit("process_func")).alias("origin"),
            # What process_func made has the version of what it was made from.
            pl.coalesce("source_etag", "version").alias("source_etag"),
        )
        .sort("artifact_guid", "file")
    )
    return _arrow(with_etags(rows, pl.col("key"), "etag", step.inputs.store).select(TABLE_COLUMNS))


def _arrow(frame: pl.DataFrame) -> pa.Table:
    """As Arrow with ordinary strings."""
    table = frame.to_arrow()
    fields = [field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields))


def data_version(table: pa.Table) -> str:
    """sha256 of the canonical JSON of ["reconciled", rows of guid, label, file, source version], for a table sorted by artifact_guid
    and file, in little memory."""
    columns = table.select(["artifact_guid", "label", "file", "source_etag"])
    digest = hashlib.sha256(b'["reconciled",[')
    first = True
    for batch in columns.to_batches(max_chunksize=10_000):
        rows = canonical_json([list(row.values()) for row in batch.to_pylist()])[1:-1]
        if rows:
            digest.update(rows if first else b"," + rows)
            first = False
    digest.update(b"]]")
    return digest.hexdigest()
