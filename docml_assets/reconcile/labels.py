"""From the label table to one trusted row an artifact: refusals, repeated rows, conflicting labels."""

from collections.abc import Mapping

import polars as pl
import pyarrow as pa

from docml_assets.reconcile.findings import (
    MAX_ROWS,
    ReconciliationError,
    ReconciliationFindings,
    findings_table,
    printable,
)
from resources.store.safe_names import refusals

# A label names a class and a folder of a report; longer ones are data that slipped into the wrong column.
MAX_LABEL_BYTES = 256
# Rows judged together, so that what is needed on the way stays small.
CHUNK = 100_000
REQUIRED = ("artifact_guid", "label", "file_hash")


def trusted_rows(table: pa.Table, findings: ReconciliationFindings) -> pl.DataFrame:
    """One row an artifact, all columns of the query, sorted by artifact_guid.

    Left out and counted: rows with an unsafe GUID or an unusable label; GUIDs, and file hashes, that carry several labels
    (which of them is right nobody here can say). Of several rows for one GUID with one label the first in the order of all
    columns stays.
    """
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise ReconciliationError(
            f"LABELS_QUERY yields {', '.join(table.column_names)}; expected {', '.join(REQUIRED)} too: "
            f"give {', '.join(missing)} a name with AS"
        )
    rows = pl.DataFrame(pl.from_arrow(table)).with_columns(pl.col(name).cast(pl.String) for name in REQUIRED)
    findings.funnel["labels"] = rows.height
    rows = _without_refused(rows, findings)
    rows = _without_conflicts(rows, findings)
    return _one_row_each(rows, findings)


def _reasons(rows: pl.DataFrame, unsafe: Mapping[str | None, str]) -> pl.Series:
    """Why each row is refused, or null."""
    label, guid = pl.col("label"), pl.col("artifact_guid")
    reason = (
        pl.when(guid.is_null() | guid.is_in([name for name in unsafe if name is not None]))
        .then(pl.lit("unsafe artifact_guid"))
        .when(label.is_null())
        .then(pl.lit("label is NULL"))
        .when(label.str.strip_chars() == "")
        .then(pl.lit("label is empty"))
        .when(label.str.len_bytes() > MAX_LABEL_BYTES)
        .then(pl.lit(f"label is longer than {MAX_LABEL_BYTES} bytes"))
        .when(label.str.contains("\ufffd", literal=True))
        .then(pl.lit("label is not UTF-8"))
        .when(label.str.contains(r"[\x00-\x1f\x7f]"))
        .then(pl.lit("label has control characters"))
    )
    return rows.select(reason.alias("__reason"))["__reason"]


def _without_refused(rows: pl.DataFrame, findings: ReconciliationFindings) -> pl.DataFrame:
    reasons = [pl.Series("__reason", [], dtype=pl.String)]
    unsafe: dict[str | None, str] = {}
    for some in rows.iter_slices(CHUNK):
        found = refusals(some["artifact_guid"].to_arrow().cast(pa.string()))
        unsafe |= found
        reasons.append(_reasons(some, found))
    judged = rows.with_columns(pl.concat(reasons))
    refused = judged.filter(pl.col("__reason").is_not_null())
    findings.funnel["refused"] = refused.height
    for name, count in refused["__reason"].value_counts().sort("__reason").iter_rows():
        findings.funnel[f"refused: {name}"] = count
    shown_rows = refused.select("artifact_guid", "label", "__reason").head(MAX_ROWS).iter_rows()
    findings.refused = findings_table(
        "refused",
        (
            {"source": "labels", "name": printable(guid), "reason": f"{why}: {unsafe[guid]}" if guid in unsafe else why}
            for guid, _, why in shown_rows
        ),
    )
    if not refused.height:
        return rows
    return judged.filter(pl.col("__reason").is_null()).drop("__reason")


def _repeated(rows: pl.DataFrame, column: str) -> pl.DataFrame:
    """All rows with a value that occurs more than once, and perhaps a few others: numbers that stand for the values are compared,
    which takes a fraction of the memory, and different values may have one number."""
    return rows.filter(rows[column].is_not_null() & rows[column].hash().is_duplicated())


def _without_conflicts(rows: pl.DataFrame, findings: ReconciliationFindings) -> pl.DataFrame:
    conflicting = []
    for column in ("artifact_guid", "file_hash"):
        several = (
            _repeated(rows, column).group_by(column).agg(pl.col("label").n_unique().alias("n")).filter(pl.col("n") > 1)
        )
        if several.height:
            conflicting.append((column, several[column]))
    out = pl.lit(False)
    for column, values in conflicting:
        out = out | pl.col(column).is_in(values.implode()).fill_null(False)
    left_out = rows.filter(out) if conflicting else rows.clear()
    findings.funnel["conflicts"] = left_out.height
    findings.conflicts = findings_table(
        "conflicts",
        (
            {"by": column, "value": row[column], "artifact_guid": row["artifact_guid"], "label": row["label"]}
            for column, values in conflicting
            for row in rows.filter(pl.col(column).is_in(values.implode()))
            .sort(column, "artifact_guid", "label", nulls_last=True)
            .head(MAX_ROWS)
            .iter_rows(named=True)
        ),
    )
    return rows.filter(~out) if left_out.height else rows


def _one_row_each(rows: pl.DataFrame, findings: ReconciliationFindings) -> pl.DataFrame:
    rows = rows.sort("artifact_guid")
    before = rows.height
    if (rows["artifact_guid"] == rows["artifact_guid"].shift()).any():
        order = [name for name, kind in rows.schema.items() if name != "artifact_guid" and not kind.is_nested()]
        texts = (pl.col(name).cast(pl.String, strict=False) for name in order)
        rows = rows.sort("artifact_guid", *texts, nulls_last=True).unique(
            "artifact_guid", keep="first", maintain_order=True
        )
    findings.funnel["repeated rows"] = before - rows.height
    return rows


def drop_duplicates(rows: pl.DataFrame, findings: ReconciliationFindings) -> pl.DataFrame:
    """Of artifacts with one file hash, the one with the smallest GUID (in byte order). A NULL hash equals no other."""
    known = _repeated(rows, "file_hash").select("artifact_guid", "file_hash")
    kept = known.group_by("file_hash").agg(pl.col("artifact_guid").min().alias("kept"))
    dropped = known.join(kept, on="file_hash").filter(pl.col("artifact_guid") != pl.col("kept"))
    findings.funnel["duplicates"] = dropped.height
    findings.duplicates = findings_table(
        "duplicates", dropped.sort("file_hash", "artifact_guid").head(MAX_ROWS).iter_rows(named=True)
    )
    if dropped.is_empty():
        return rows
    return rows.filter(~pl.col("artifact_guid").is_in(dropped["artifact_guid"].implode()))
