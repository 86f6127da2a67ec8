"""reconciled_data: every label with its files, copied, processed and verified; the one step that reads production, and its versions."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from docml_assets.experiment.functions import defined_functions
from docml_assets.experiment.settings.settings import Settings
from docml_assets.experiment.source import functions_digest
from docml_assets.steps.reuse import find_finished, nothing_to_reuse, read_required, reused_outcome, take_earlier
from docml_assets.steps.work import Outcome, Work
from docml_assets.tables import parquet_bytes, read_parquet
from docml_contract.base import Document, IncompleteArtifact
from docml_contract.file_names import matches
from docml_contract.manifests import cache_key, label_counts_version
from docml_contract.names import (
    COUNTS_BY_LABEL,
    INFERENCE,
    LABEL_COUNTS,
    LABEL_ROWS,
    LABELS_PICTURE,
    PREPARATION,
    PRODUCTION_FILES,
    PRODUCTION_LABELS,
    RECONCILED_DATA,
    RECONCILED_TABLE,
    RECONCILIATION,
    TRAINING,
    TUNING,
    UNITS_TABLE,
)
from resources.label_values import describe_look_alikes, look_alikes
from resources.labels import LabelSource
from resources.store import Store
from resources.store.manifests import read_recorded

if TYPE_CHECKING:
    from docml_assets.reconcile.reconciliation import ReconciledArtifacts, ReconciliationInputs

FINDINGS = "findings.json"
SAMPLE_ROWS = 50
LISTING_SHARDS = 16  # key ranges that are listed at once


class FindingsDocument(Document):
    """reconciliation/findings.json: what reconciliation met on its way, for people."""

    funnel: dict[str, int] = Field(description="stage -> count")
    samples: dict[str, list[dict[str, Any]]] = Field(description="problem -> its first rows")


def reconciliation(work: Work) -> Outcome | None:
    """Reconcile the labels with the files. None where the step is not performed, nothing fits and nothing needs it."""
    folder = work.place.reconciliation
    done = find_finished(work, folder)
    if done is not None:
        return done
    key = reconciliation_key(work)
    if not work.performs(RECONCILIATION):
        taken = take_earlier(
            work, lambda place: {"": place.reconciliation}, {"": folder}, lambda found: found[""].cache_key == key
        )
        if taken is not None:
            return reused_outcome(RECONCILED_DATA, taken, {"": folder}, taken[""].data_version)
        if any(work.performs(step) for step in (PREPARATION, TRAINING, TUNING, INFERENCE)):
            raise nothing_to_reuse(work, RECONCILIATION, "made with the same query, files, process_func and use case")
        return None
    return _work(work, key)


def reconciliation_key(work: Work) -> str:
    """What decides what reconciliation makes of the same production data."""
    settings = work.settings
    with_process = "process_func" in defined_functions(work.functions_source)
    return cache_key(
        RECONCILED_DATA,
        labels_query=settings.labels_query,
        files_from_prod=sorted(settings.files_from_prod),
        files_on_research=sorted(settings.files_on_research),
        **({"files_optional": sorted(settings.files_optional)} if settings.files_optional else {}),
        process_func=functions_digest(work.functions_source, ["process_func"]) if with_process else None,
        **({"use_case": work.use_case.reconciling_digest} if work.use_case else {}),
    )


def _work(work: Work, key: str) -> Outcome:
    from docml_assets.reconcile.reconciliation import reconcile  # polars loads where it is used

    # The versions are read before the data: what changes meanwhile shows as stale, never as up to date.
    inputs = versions(work.settings, work.labels, work.production)
    result = reconcile(_inputs(work))
    folder = work.place.reconciliation
    manifest = work.publish(
        RECONCILED_DATA,
        folder,
        {
            RECONCILED_TABLE: parquet_bytes(result.table),
            LABEL_ROWS: parquet_bytes(result.label_rows),
            FINDINGS: _findings(result).to_bytes(),
            **({UNITS_TABLE: parquet_bytes(result.units)} if result.units is not None else {}),
        },
        cache_key=key,
        data_version=result.data_version,
        inputs=inputs,
    )
    return Outcome.of(work, manifest, folder, how="made", why=f"{result.table.num_rows} files reconciled")


def _inputs(work: Work) -> "ReconciliationInputs":
    from docml_assets.reconcile.reconciliation import ReconciliationInputs

    return ReconciliationInputs(
        place=work.place,
        settings=work.settings,
        functions_source=work.functions_source,
        store=work.store,
        production=work.production,
        labels=work.labels,
        environment=work.environment,
        log=work.reporter.say,
        progress=work.reporter.progress,
        use_case=work.use_case,
    )


def restore_artifacts(work: Work, table: pa.Table) -> None:
    """Copy and process again what has gone of the artifacts in `table` (reconciled_manifest) since they were reconciled.

    IncompleteArtifact names files that are there and are not what was recorded: their sizes, and on S3 their etags, tell; a folder's
    files are hashed by the job that reads them. And files that have gone and cannot be made again, since production has changed.
    """
    prefix = work.place.shared.reconciled_artifacts
    gone = _gone(work, table)
    if not gone:
        return
    from docml_assets.reconcile.reconciliation import reconcile

    work.reporter.say(f"{len(gone)} files below {work.store.uri(prefix)} are gone: they are copied or made again")
    reconcile(_inputs(work))
    lost = _gone(work, table)
    recorded = dict(zip(table["key"].to_pylist(), table["etag"].to_pylist(), strict=True))
    lost += [key for key in gone if key not in lost and work.store.local_path and _etag(work, key) != recorded[key]]
    if lost:
        raise IncompleteArtifact(
            f"{work.describe()}: {len(lost)} reconciled files are gone, {work.store.uri(lost[0])} for example, and what production and "
            "process_func give now differs from them: restore them, or take the next run number (--next)"
        )


def _etag(work: Work, key: str) -> str | None:
    found = work.store.head(key)
    return found.etag if found else None


def _gone(work: Work, table: pa.Table) -> list[str]:
    """The keys of `table` that the store does not have; IncompleteArtifact for those that changed."""
    prefix = work.place.shared.reconciled_artifacts
    listing = work.store.below(prefix).list_table("", LISTING_SHARDS, etags=False)
    keys, sizes, etags = (listing[name].to_pylist() for name in ("key", "size", "etag"))
    there = dict(zip(keys, zip(sizes, etags, strict=True), strict=True))
    gone, changed = [], []
    for row in table.select(["key", "size", "etag"]).to_pylist():
        found = there.get(row["key"][len(prefix) + 1 :])
        if found is None:
            gone.append(row["key"])
        elif found[0] != row["size"] or (found[1] or row["etag"]) != row["etag"]:
            changed.append(row["key"])
    if changed:
        shown = ", ".join(work.store.uri(key) for key in changed[:5])
        raise IncompleteArtifact(
            f"{work.describe()}: {shown}{f' and {len(changed) - 5} more' if len(changed) > 5 else ''}: the size or the etag differs from "
            "what was recorded when it was copied or made: it is damaged. Remove it from the store and execute the run again, which copies "
            "or makes it anew"
        )
    return gone


def _findings(result: "ReconciledArtifacts") -> FindingsDocument:
    samples = {name: table.slice(0, SAMPLE_ROWS).to_pylist() for name, table in result.problems.items()}
    return FindingsDocument(funnel=dict(result.funnel), samples=samples)


def read_units(work: Work) -> pa.Table | None:
    """artifact_guid, unit and label of the run's documents where these are parts of artifacts, else None. NotReady before they are known."""
    manifest = read_required(work, work.place.reconciliation, RECONCILED_DATA)
    if UNITS_TABLE not in {entry.path for entry in manifest.files}:
        return None
    return read_parquet(read_recorded(work.store, work.place.reconciliation, manifest.file(UNITS_TABLE)))


def read_findings(work: Work) -> FindingsDocument:
    """The findings of a finished step."""
    key = f"{work.place.reconciliation}/{FINDINGS}"
    return FindingsDocument.from_bytes(work.store.get(key), key)


def label_counts(work: Work) -> Outcome:
    """Count the reconciled documents by label; `unique_labels_and_counts.json`, most frequent first, and a picture of it."""
    from docml_assets.report.plots import label_histogram  # loads where something is drawn

    folder = work.place.labels
    done = find_finished(work, folder)
    if done is not None:
        return done
    reconciled = read_required(work, work.place.reconciliation, RECONCILED_DATA)
    rows = read_parquet(work.store.get(f"{work.place.reconciliation}/{LABEL_ROWS}"))
    counted = pc.value_counts(rows["label"]).to_pylist()
    counts = {item["values"]: item["counts"] for item in sorted(counted, key=lambda c: (-c["counts"], c["values"]))}
    inputs = {RECONCILED_DATA: reconciled.data_version}
    manifest = work.publish(
        LABEL_COUNTS,
        folder,
        {
            COUNTS_BY_LABEL: (json.dumps(counts, indent=2, ensure_ascii=False) + "\n").encode(),
            **({LABELS_PICTURE: label_histogram(counts, "documents by label")} if counts else {}),
        },
        cache_key=cache_key(LABEL_COUNTS, **inputs),
        data_version=label_counts_version(counts),
        inputs=inputs,
    )
    if groups := look_alikes(counts):
        work.reporter.say(describe_look_alikes(groups))
    why = f"{sum(counts.values())} documents with {len(counts)} labels"
    return Outcome.of(work, manifest, folder, how="made", why=why)


def read_counts(work: Work) -> dict[str, int]:
    """The counts of a finished step."""
    counts: dict[str, int] = json.loads(work.store.get(f"{work.place.labels}/{COUNTS_BY_LABEL}"))
    return counts


def versions(settings: Settings, labels: LabelSource, production: Store) -> dict[str, str]:
    """The data versions of both external assets as an experiment sees them."""
    return {
        PRODUCTION_LABELS: labels.fingerprint(settings.labels_query),
        PRODUCTION_FILES: files_version(production, settings.files_from_prod),
    }


def describe_change(assets: Iterable[str]) -> str:
    """What is said of a run that was made of other versions of these assets."""
    return f"{' and '.join(assets)} changed since this run was made; start the next run to use what is new"


def files_version(production: Store, names: Sequence[str]) -> str:
    """sha256 over key, size and etag of every production file that `names` (names and patterns) mean, in the order of their keys."""
    table = production.list_table(shards=LISTING_SHARDS)
    table = table.cast(pa.schema([("key", pa.string()), ("size", pa.int64()), ("etag", pa.string())]))
    file_names = pc.replace_substring_regex(table["key"], pattern="^.*/", replacement="")
    wanted = [name for name in file_names.unique().to_pylist() if any(matches(name, entry) for entry in names)]
    table = table.filter(pc.is_in(file_names, value_set=pa.array(wanted, pa.string()))).sort_by("key")
    rows = pc.binary_join_element_wise(table["key"], table["size"].cast(pa.string()), table["etag"], "\t")
    digest = hashlib.sha256()
    for chunk in rows.chunks:
        digest.update("".join(f"{row}\n" for row in chunk.to_pylist()).encode())
    return digest.hexdigest()
