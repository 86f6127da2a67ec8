"""From the label table to one trusted row an artifact: refusals, repeated rows, conflicting labels."""

import re
import unicodedata
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
from resources.label_values import NO_VALUE, TEXT_COLUMNS, column_named
from resources.store import refusals

# A label names a class and a folder of a report; longer ones are data that slipped into the wrong column.
MAX_LABEL_BYTES = 256
# Rows judged together, so that what is needed on the way stays small.
CHUNK = 100_000
# What keys refuse, too (`docml_contract.plain_text`): a label that hides a part of itself, or reads backwards, misleads people.
INVISIBLE = r"[\p{Cc}\p{Cf}\p{Cn}\p{Zl}\p{Zp}]"
# By what text that is not UTF-8 comes, see resources.label_values.
NOT_UTF8 = "\ufffd"
# A whole number that a database gives back as a fraction
WHOLE = r"^(\d+)\.0+$"
# One file's hash comes in capitals, in small letters, or with a prefix, as its tool likes. In mixed letters it may be base64.
HEXADECIMAL = r"^(?:0[xX]|\\[xX])?([0-9a-f]{16,}|[0-9A-F]{16,})$"


def trusted_rows(table: pa.Table, findings: ReconciliationFindings) -> pl.DataFrame:
    """One row an artifact, all columns of the query, sorted by artifact_guid.

    Left out and counted: rows with an unsafe GUID or an unusable label; GUIDs, and file hashes, that carry several labels
    (which of them is right nobody here can say). Of several rows for one GUID with one label the first in the order of all
    columns stays.
    """
    rows = pl.DataFrame(pl.from_arrow(named_columns(table)))
    rows = rows.with_columns(as_texts(rows[name]) for name in TEXT_COLUMNS)
    findings.funnel["labels"] = rows.height
    rows = _without_hashes_that_are_none(rows, findings)
    rows = _with_one_spelling(rows, findings)
    rows = _without_refused(rows, findings)
    rows = _without_conflicts(rows, findings)
    return _one_row_each(rows, findings)


def as_texts(values: pl.Series) -> pl.Series:
    """Labels, GUIDs or hashes as the texts that they count as. A number that is none (NaN) is missing, as NULL is."""
    return (values.fill_nan(None) if values.dtype.is_float() else values).cast(pl.String)


def named_columns(table: pa.Table) -> pa.Table:
    """The query's columns, the required ones as docml writes them: databases differ in the case that they give back."""
    names = table.column_names
    found = {column_named(names, wanted): wanted for wanted in TEXT_COLUMNS}
    missing = [wanted for wanted in TEXT_COLUMNS if wanted not in [found[name] for name in found if name is not None]]
    if missing:
        raise ReconciliationError(
            f"LABELS_QUERY yields {', '.join(names)}; expected {', '.join(TEXT_COLUMNS)} too: "
            f"give {', '.join(missing)} a name with AS"
        )
    return table.rename_columns([found.get(name, name) for name in names])


def _without_hashes_that_are_none(rows: pl.DataFrame, findings: ReconciliationFindings) -> pl.DataFrame:
    """`rows` with NULL for hashes that tell nothing: artifacts that have none are not duplicates of each other."""
    text = pl.col("file_hash").str.strip_chars()
    reasons = {
        "file_hash is NULL": pl.col("file_hash").is_null(),
        "file_hash is empty": (text == "").fill_null(False),
        "file_hash says that there is none": text.str.contains(f"{NO_VALUE}|^0+$").fill_null(False),
        "file_hash is not UTF-8": text.str.contains(NOT_UTF8, literal=True).fill_null(False),
    }
    counts = rows.select(condition.sum().alias(reason) for reason, condition in reasons.items()).row(0)
    found = {reason: count for reason, count in zip(reasons, counts, strict=True) if count}
    if found:
        findings.funnel["without file_hash"] = sum(found.values())
        findings.funnel |= {f"without file_hash: {reason}": count for reason, count in found.items()}
    if found.keys() <= {"file_hash is NULL"}:
        return rows
    none = pl.any_horizontal(*reasons.values())
    return rows.with_columns(pl.when(~none).then(pl.col("file_hash")).alias("file_hash"))


def _with_one_spelling(rows: pl.DataFrame, findings: ReconciliationFindings) -> pl.DataFrame:
    """`rows` with the hexadecimal hashes in small letters and without prefix, where some differ in nothing else."""
    digits = rows["file_hash"].str.strip_chars().str.extract(HEXADECIMAL).str.to_lowercase()
    if not (digits != rows["file_hash"]).any():
        return rows
    plain = digits.fill_null(rows["file_hash"])
    respelled = rows["file_hash"].hash().n_unique() - plain.hash().n_unique()
    if not respelled:
        return rows
    findings.funnel["spellings of one file_hash"] = respelled
    return rows.with_columns(plain.alias("file_hash"))


def label_refusal() -> pl.Expr:
    """Why a label cannot be one, or null."""
    label = pl.col("label")
    return (
        pl.when(label.is_null())
        .then(pl.lit("label is NULL"))
        .when(label.str.strip_chars() == "")
        .then(pl.lit("label is empty"))
        .when(label.str.len_bytes() > MAX_LABEL_BYTES)
        .then(pl.lit(f"label is longer than {MAX_LABEL_BYTES} bytes"))
        .when(label.str.contains(NOT_UTF8, literal=True))
        .then(pl.lit("label is not UTF-8"))
        .when(label.str.contains(INVISIBLE))
        .then(pl.lit("label has control or invisible characters"))
    )


def _reasons(rows: pl.DataFrame, unsafe: Mapping[str | None, str]) -> pl.Series:
    """Why each row is refused, or null."""
    guid = pl.col("artifact_guid")
    reason = (
        pl.when(guid.is_null() | guid.is_in([name for name in unsafe if name is not None]))
        .then(pl.lit("unsafe artifact_guid"))
        .when(guid.str.contains(NOT_UTF8, literal=True))
        .then(pl.lit("artifact_guid is not UTF-8"))
        .otherwise(label_refusal())
    )
    return rows.select(reason.alias("__reason"))["__reason"]


def _without_refused(rows: pl.DataFrame, findings: ReconciliationFindings) -> pl.DataFrame:
    reasons = [pl.Series("__reason", [], dtype=pl.String)]
    unsafe: dict[str | None, str] = {}
    for some in rows.iter_slices(CHUNK):
        found = refusals(some["artifact_guid"].to_arrow().cast(pa.string()))
        unsafe |= found
        reasons.append(_reasons(some, found))
    why = pl.concat(reasons)
    refused = rows.select("artifact_guid").with_columns(why).filter(why.is_not_null())
    findings.funnel["refused"] = refused.height
    for name, count in refused["__reason"].value_counts().sort("__reason").iter_rows():
        findings.funnel[f"refused: {name}"] = count
    shown_rows = refused.head(MAX_ROWS).iter_rows()
    findings.refused = findings_table(
        "refused",
        (
            {
                "source": "labels",
                "name": printable(guid),
                "reason": f"{reason}: {unsafe[guid]}" if guid in unsafe else reason,
            }
            for guid, reason in shown_rows
        ),
    )
    if not refused.height:
        return rows
    return rows.filter(why.is_null())


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


def near_misses(rows: pl.DataFrame, guids: pl.Series) -> pl.DataFrame:
    """artifact_guid of label rows, in_production, reason: GUIDs without files that some artifact in production nearly has.

    rows: label rows without files. guids: of artifacts in production without labels.
    """
    wanted = rows.select("artifact_guid").head(MAX_ROWS).with_columns(_bare(pl.col("artifact_guid")).alias("bare"))
    found = [pl.DataFrame(schema={"artifact_guid": pl.String, "in_production": pl.String})]
    for some in guids.to_frame("in_production").iter_slices(CHUNK):
        nearly = some.with_columns(_bare(pl.col("in_production")).alias("bare")).join(wanted, on="bare")
        found.append(nearly.select("artifact_guid", "in_production"))
    pairs = pl.concat(found).unique("artifact_guid", keep="first", maintain_order=True).sort("artifact_guid")
    reasons = [_difference(*pair) for pair in pairs.iter_rows()]
    return pairs.with_columns(pl.Series("reason", reasons, dtype=pl.String))


def _bare(guid: pl.Expr) -> pl.Expr:
    """A GUID without what people and databases vary: case, blanks, zeros in front, braces and hyphens, accents, a number's ".0"."""
    plain = guid.str.normalize("NFC").str.to_lowercase().str.replace_all(r"[\s{}\-]", "")
    return plain.str.strip_chars_start("0").str.replace(WHOLE, "$1")


def _difference(label: str, production: str) -> str:
    """What tells two GUIDs apart that are equal when bare."""
    differences = {
        "case": str.lower,
        "blanks": lambda guid: "".join(guid.split()),
        "zeros in front": lambda guid: guid.lstrip("0"),
        "braces or hyphens": lambda guid: re.sub(r"[{}\-]", "", guid),
        "how accents are written": lambda guid: unicodedata.normalize("NFC", guid),
        'a number\'s ".0"': lambda guid: re.sub(WHOLE, r"\1", guid),
    }
    found = [
        name for name, change in differences.items() if (change(label) == label) != (change(production) == production)
    ]
    if not found and label.lower() == production.lower():
        found = ["case"]
    return " and ".join(found) or "spelling"
