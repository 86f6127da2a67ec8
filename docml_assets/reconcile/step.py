"""Reconciliation from end to end: fetch and list, join, copy, process, verify, repair."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa

from docml_assets.experiment.settings.settings import Settings
from docml_assets.reconcile.errors import NothingLeft, ReconciliationError, TooManyFailures
from docml_assets.reconcile.findings import Findings, findings_table
from docml_assets.reconcile.gather import (
    Gathered,
    gather,
    list_existing,
    list_production,
    plan_run,
    recipe_of,
    with_etags,
)
from docml_assets.reconcile.pace import Pace
from docml_assets.reconcile.plan import (
    CHUNK,
    MARKER,
    SOURCE,
    Plan,
    Recipe,
    artifact_files,
    key_below,
    to_copy,
    to_process,
)
from docml_assets.reconcile.process import Failure, Task, cores, process_artifacts
from docml_contract.base import canonical_json
from docml_contract.names import RunPlace
from resources.labels import LabelSource
from resources.store import Store

# Production may change while it is copied: so often everything is planned again.
ROUNDS = 3
FAILURES = "failures.jsonl"
TABLE_COLUMNS = ["artifact_guid", "label", "file_hash", "file", "key", "size", "etag", "source_etag", "origin"]

Log = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Reconciled:
    """table: one row a file, TABLE_COLUMNS. label_rows: the kept rows with all columns of the query. seconds: wall clock."""

    table: pa.Table
    label_rows: pa.Table
    findings: Findings
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
    """What all stages need, and what they count."""

    place: RunPlace
    settings: Settings
    functions_source: str
    store: Store
    production: Store
    environment: Mapping[str, str]
    recipe: Recipe
    log: Log
    progress: Progress
    copied: int = 0
    bytes_copied: int = 0
    repaired: int = 0
    processed: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def base(self) -> str:
        return self.place.shared.reconciled_artifacts


def reconcile(
    *,
    place: RunPlace,
    settings: Settings,
    functions_source: str,
    store: Store,
    production: Store,
    labels: LabelSource,
    environment: Mapping[str, str],
    log: Log,
    progress: Progress,
) -> Reconciled:
    """Bring labels and production files together below `<experiment>/data/reconciled_artifacts`.

    Writes versioned artifact files only, each of them once, so that it can be killed at any moment and started again; files of
    another version are never touched. Raises ReconciliationError and its kin, LabelError, StoreError.
    """
    started = time.monotonic()
    recipe = recipe_of(place, settings, functions_source)
    step = _Step(place, settings, functions_source, store, production, environment, recipe, log, progress)
    progress("labels and files listed", 0, 1)
    names = settings.files_from_prod
    gathered = gather(labels, settings.labels_query, settings.max_label_rows, production, names, store, step.base)
    progress("labels and files listed", 1, 1)
    plan, existing_table, findings = _copy_until_settled(step, gathered)
    existing_table = _process(step, plan, existing_table)
    return _result(step, plan, existing_table, findings, started)


def _copy_until_settled(step: _Step, gathered: Gathered) -> tuple[Plan, pa.Table, Findings]:
    """Plan and copy; then list both sides again, and again copy what is missing or has changed meanwhile.

    Returns the plan, what lies in the store by then, and what the last look at production left out.
    """
    copied = pl.DataFrame(schema={"artifact_guid": pl.String, "version": pl.String, "file": pl.String})
    same = copied.columns
    for round_number in range(ROUNDS + 1):
        plan, findings = plan_run(gathered, step.production, step.recipe)
        stale = copied.join(plan.files, on=same, how="anti")
        if stale.height:
            # Copied under the version of what production held before: their content is not what the version says.
            step.log(f"{stale.height} files changed in production while they were copied; taking the new ones")
            step.store.delete(stale.select(key_below(step.base)).to_series())
        missing = to_copy(plan, gathered.existing)
        if missing.is_empty():
            return plan, gathered.existing, findings
        if round_number == ROUNDS:
            break
        _copy(step, plan, missing, repair=round_number > 0)
        copied = pl.concat([copied, missing.select(same)])
        gathered.existing = list_existing(step.store, step.base)
        gathered.files, gathered.of_files = list_production(step.production, step.recipe.files_from_prod)
    names = ", ".join(missing.head(20).select(SOURCE).to_series())
    raise ReconciliationError(
        f"{missing.height} production files could not be copied in {ROUNDS} rounds; they keep changing or vanishing: {names}"
    )


def _copy(step: _Step, plan: Plan, missing: pl.DataFrame, *, repair: bool) -> None:
    total = missing.height
    reused = plan.files.height - total
    step.log(f"copying {total:,} files ({float(missing['size'].sum()) / 1e6:,.1f} MB); {reused:,} are there already")
    pace = Pace("files copied", total, step.log, step.progress)
    keys = [SOURCE.alias("source"), key_below(step.base).alias("key")]
    pairs = (pair for some in missing.iter_slices(CHUNK) for pair in some.select(keys).iter_rows())
    gone = step.store.copy_many(step.production, pairs, copied=pace.tick)
    step.copied += pace.done
    step.repaired += pace.done if repair else 0
    lost = pl.Series([lost.source for lost in gone], dtype=pl.String)
    step.bytes_copied += int(missing.filter(~SOURCE.is_in(lost.implode()))["size"].sum())
    step.log(f"copied {pace.done:,} files, {pace.rate:,.0f} a second")


def _process(step: _Step, plan: Plan, existing: pa.Table) -> pa.Table:
    """Let process_func make what is not there; once more for what is still missing then. Returns the store's listing after it."""
    for attempt in range(2):
        files = artifact_files(plan, existing)
        pending = to_process(plan, files, step.recipe)
        failed = {failure.artifact_guid for failure in step.failures}
        pending = pending.filter(~pl.col("artifact_guid").is_in(list(failed)))
        if pending.is_empty():
            break
        if attempt:
            step.repaired += pending.height
        step.log(f"process_func: {pending.height:,} artifacts")
        pace = Pace("artifacts processed", pending.height, step.log, step.progress)
        step.failures += process_artifacts(
            _tasks(step, pending, files),
            store=step.store,
            functions_source=step.functions_source,
            environment=step.environment,
            processes=min(step.settings.reconciliation_processes or cores(), pending.height),
            processed=pace.tick,
        )
        step.processed += pace.done
        existing = list_existing(step.store, step.base)
    return existing


def _tasks(step: _Step, pending: pl.DataFrame, files: pl.DataFrame) -> Iterator[Task]:
    made = files.filter(
        ~pl.col("file").is_in(list(step.recipe.files_from_prod)) & ~pl.col("file").str.starts_with(MARKER)
    ).join(pending.select("artifact_guid"), on="artifact_guid", how="semi")
    already = dict(made.group_by("artifact_guid").agg("file").iter_rows())
    for row in pending.iter_rows(named=True):
        version = row.pop("version")
        guid = row["artifact_guid"]
        folder = f"{step.base}/{guid}/{version}"
        yield Task(row, folder, step.recipe.files_from_prod, frozenset(already.get(guid, ())))


def _result(step: _Step, plan: Plan, existing: pa.Table, findings: Findings, started: float) -> Reconciled:
    recipe = step.recipe
    files = artifact_files(plan, existing).filter(~pl.col("file").str.starts_with(MARKER))
    failed = [
        *(
            {"artifact_guid": f.artifact_guid, "file": None, "reason": f.reason, "traceback": f.traceback}
            for f in step.failures
        ),
        *_lacking(plan, files, recipe, {failure.artifact_guid for failure in step.failures}),
    ]
    out = {str(row["artifact_guid"]) for row in failed}
    findings.failures = findings_table("failures", failed)
    candidates = plan.artifacts.height + plan.incomplete["artifact_guid"].n_unique()
    _check_share(step, failed, out, candidates)
    artifacts = plan.artifacts.filter(~pl.col("artifact_guid").is_in(list(out)))
    if artifacts.is_empty():
        stages = "; ".join(f"{stage}: {count}" for stage, count in findings.funnel.items())
        raise NothingLeft(
            f"no artifact is left after joining labels and files ({stages}); check LABELS_QUERY and FILES_FROM_PROD"
        )
    table = _table(step, artifacts, files, plan)
    findings.funnel |= {
        "failed": len(out),
        "copied": step.copied,
        "reused": max(0, plan.files.height - step.copied),
        "repaired": step.repaired,
        "processed": step.processed,
        "artifacts": artifacts.height,
        "files": table.num_rows,
    }
    return Reconciled(
        table=table,
        label_rows=_arrow(artifacts.drop("version")),
        findings=findings,
        data_version=data_version(table),
        bytes_copied=step.bytes_copied,
        seconds=time.monotonic() - started,
    )


def _lacking(plan: Plan, files: pl.DataFrame, recipe: Recipe, already: set[str]) -> Iterable[dict[str, Any]]:
    """Files of FILES_ON_RESEARCH that production lacks, or that process_func did not make."""
    for guid, file in plan.incomplete.iter_rows():
        yield {"artifact_guid": guid, "file": file, "reason": "not in production", "traceback": ""}
    if not recipe.made_files:
        return
    expected = plan.artifacts.select("artifact_guid").join(pl.DataFrame({"file": list(recipe.made_files)}), how="cross")
    missing = expected.join(files, on=["artifact_guid", "file"], how="anti", maintain_order="left")
    reason = "process_func did not write it" if recipe.process_digest else "nothing makes it: there is no process_func"
    for guid, file in missing.iter_rows():
        if guid not in already:
            yield {"artifact_guid": guid, "file": file, "reason": reason, "traceback": ""}


def _check_share(step: _Step, failed: list[dict[str, Any]], out: set[str], candidates: int) -> None:
    if not failed:
        return
    key = f"{step.place.reconciliation}/{FAILURES}"
    step.store.put(key, b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in failed))
    allowed = step.settings.max_failed_share
    if len(out) <= allowed * candidates:
        step.log(f"{len(out)} of {candidates} artifacts are left out: {step.store.uri(key)}")
        return
    listed = "\n".join(
        f"  {row['artifact_guid']}" + (f" {row['file']}" if row["file"] else "") + f": {row['reason']}"
        for row in failed[:20]
    )
    traceback = next((f"\nThe first traceback:\n{row['traceback']}" for row in failed if row["traceback"]), "")
    raise TooManyFailures(
        f"{len(out)} of {candidates} artifacts failed or lack files, more than MAX_FAILED_SHARE = {allowed:g} allows:\n{listed}"
        + (f"\n  … and {len(failed) - 20} more" if len(failed) > 20 else "")
        + f"\nAll of them: {step.store.uri(key)}{traceback}"
    )


def _table(step: _Step, artifacts: pl.DataFrame, files: pl.DataFrame, plan: Plan) -> pa.Table:
    """reconciled_manifest: one row a file, sorted by artifact_guid and file."""
    from_prod = pl.col("file").is_in(list(step.recipe.files_from_prod))
    rows = (
        files.with_columns(key_below(step.base).alias("key"))
        .drop("version")
        .join(artifacts.select("artifact_guid", "label", "file_hash", "version"), on="artifact_guid")
        .join(plan.files.select("artifact_guid", "file", "source_etag"), on=["artifact_guid", "file"], how="left")
        .with_columns(
            pl.when(from_prod).then(pl.lit("prod")).otherwise(pl.lit("process_func")).alias("origin"),
            # What process_func made has the version of what it was made from.
            pl.coalesce("source_etag", "version").alias("source_etag"),
        )
        .sort("artifact_guid", "file")
    )
    return _arrow(with_etags(rows, pl.col("key"), "etag", step.store).select(TABLE_COLUMNS))


def _arrow(frame: pl.DataFrame) -> pa.Table:
    """As Arrow with ordinary strings."""
    table = frame.to_arrow()
    fields = [field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields))


def data_version(table: pa.Table) -> str:
    """`docml_contract.versions.reconciled_version` of a manifest table sorted by artifact_guid and file, in little memory."""
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
