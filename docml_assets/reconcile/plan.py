"""What every artifact should consist of, and what of it is not there yet. Pure functions over tables."""

import hashlib
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from docml_assets.reconcile.findings import MAX_ROWS, Findings, findings_table, shown
from docml_assets.reconcile.label_rows import drop_duplicates
from docml_contract.base import short
from resources.keys import refusal

_PLAIN_KEY = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}/[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$"
# Written by the platform after process_func's files, with their number in the name: `.processed-3`.
MARKER = ".processed-"


@dataclass(frozen=True)
class Recipe:
    """What decides an artifact's version besides its source files."""

    files_from_prod: tuple[str, ...]
    files_on_research: tuple[str, ...]
    process_digest: str | None
    overwrite_run: int | None

    @property
    def made_files(self) -> tuple[str, ...]:
        """The files that process_func has to make."""
        return tuple(name for name in self.files_on_research if name not in self.files_from_prod)


@dataclass(frozen=True)
class Plan:
    """artifacts: the label rows of the kept artifacts, with `version`. files: their files from production, one row each:
    artifact_guid, file, size, source_etag, source (key in production), key (in the store). incomplete: artifact_guid, file
    of kept artifacts that lack a file in production."""

    artifacts: pl.DataFrame
    files: pl.DataFrame
    incomplete: pl.DataFrame


def production_files(listing: pa.Table, names: tuple[str, ...], findings: Findings) -> pl.DataFrame:
    """The wanted files of the production listing: artifact_guid, file, size, source_etag, source. Unsafe keys are counted."""
    findings.funnel |= {
        "production files": listing.num_rows,
        "production files refused": 0,
        "production files elsewhere": 0,
    }
    plain = pc.match_substring_regex(listing["key"], _PLAIN_KEY)
    if not pc.all(plain).as_py():
        suspects = listing.filter(pc.invert(plain))
        accepted = suspects.filter(_judged(suspects["key"].to_pylist(), findings))
        listing = pa.concat_tables([listing.filter(plain), accepted])
    table = pl.DataFrame(pl.from_arrow(listing)).rename({"key": "source", "etag": "source_etag"})
    parts = [
        table.filter(pl.col("source").str.ends_with(f"/{name}")).select(
            pl.col("source").str.strip_suffix(f"/{name}").alias("artifact_guid"),
            pl.lit(name).alias("file"),
            "size",
            "source_etag",
            "source",
        )
        for name in sorted(names)
    ]
    return (
        pl.concat(parts)
        if parts
        else table.clear().select(
            pl.lit("").alias("artifact_guid"), pl.lit("").alias("file"), "size", "source_etag", "source"
        )
    )


def _judged(keys: list[str], findings: Findings) -> pa.Array:
    """Which of the unusual keys are safe and `<guid>/<file>`; the others are counted."""
    accepted, refused = [], []
    for key in keys:
        segments = key.split("/")
        reasons = [reason for segment in segments if (reason := refusal(segment)) is not None]
        accepted.append(not reasons and len(segments) == 2)
        if reasons:
            refused.append({"source": "files", "name": shown(key), "reason": reasons[0]})
    findings.funnel["production files refused"] = len(refused)
    findings.funnel["production files elsewhere"] = len(keys) - sum(accepted) - len(refused)
    findings.refused = pa.concat_tables([findings.refused, findings_table("refused", refused)])
    return pa.array(accepted, pa.bool_())


def join(
    rows: pl.DataFrame, files: pl.DataFrame, recipe: Recipe, findings: Findings
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Artifacts that have a label and files, duplicates dropped; and their files."""
    if recipe.files_from_prod:
        with_files = files.select(pl.col("artifact_guid").unique())
        without = rows.join(with_files, on="artifact_guid", how="anti", maintain_order="left")
        unlabelled = with_files.join(rows, on="artifact_guid", how="anti")
        rows = rows.join(with_files, on="artifact_guid", how="semi", maintain_order="left")
        findings.funnel["labels without files"] = without.height
        findings.funnel["artifacts without labels"] = unlabelled.height
        findings.labels_without_files = findings_table(
            "labels_without_files", without.select("artifact_guid", "label").head(MAX_ROWS).iter_rows(named=True)
        )
        findings.files_without_labels = findings_table(
            "files_without_labels", unlabelled.sort("artifact_guid").head(MAX_ROWS).iter_rows(named=True)
        )
    findings.funnel["joined"] = rows.height
    rows = drop_duplicates(rows, findings)
    findings.funnel["deduplicated"] = rows.height
    return rows, files.join(rows.select("artifact_guid"), on="artifact_guid", how="semi")


def make_plan(rows: pl.DataFrame, files: pl.DataFrame, base: str, recipe: Recipe) -> Plan:
    """Versions and keys below `base` for joined artifacts; `files` with their source etags."""
    counts = files.group_by("artifact_guid").agg(pl.len().alias("n"))
    short_of = counts.filter(pl.col("n") < len(recipe.files_from_prod)).select("artifact_guid")
    incomplete = pl.DataFrame(schema={"artifact_guid": pl.String, "file": pl.String})
    if short_of.height:
        expected = short_of.join(pl.DataFrame({"file": sorted(recipe.files_from_prod)}), how="cross")
        incomplete = expected.join(files, on=["artifact_guid", "file"], how="anti").sort("artifact_guid", "file")
        rows = rows.join(short_of, on="artifact_guid", how="anti", maintain_order="left")
        files = files.join(short_of, on="artifact_guid", how="anti")
    artifacts = rows.with_columns(_versions(rows, files, recipe).alias("version"))
    folder = pl.lit(f"{base}/") + pl.col("artifact_guid") + "/" + pl.col("version") + "/"
    planned = (
        files.join(artifacts.select("artifact_guid", "version"), on="artifact_guid")
        .sort("artifact_guid", "file")
        .with_columns((folder + pl.col("file")).alias("key"))
        .drop("version")
    )
    return Plan(artifacts, planned, incomplete)


def _versions(rows: pl.DataFrame, files: pl.DataFrame, recipe: Recipe) -> pl.Series:
    """16 hex digits an artifact, in the order of `rows`: its source versions, process_func, and the run of an OVERWRITE."""
    sources = (
        files.sort("artifact_guid", "file")
        .group_by("artifact_guid", maintain_order=True)
        .agg((pl.col("file") + "\x1f" + pl.col("source_etag")).str.join("\x1e").alias("sources"))
    )
    texts = rows.select("artifact_guid").join(sources, on="artifact_guid", how="left", maintain_order="left")["sources"]
    tail = f"\0{recipe.process_digest or ''}\0{recipe.overwrite_run or ''}".encode()
    hashes = [short(hashlib.sha256((text or "").encode() + tail).hexdigest()) for text in texts]
    return pl.Series("version", hashes, dtype=pl.String)


def to_copy(plan: Plan, existing: pa.Table) -> pl.DataFrame:
    """The planned files that are not in the store with their size."""
    there = pl.DataFrame(pl.from_arrow(existing.select(["key", "size"])))
    return plan.files.join(there, on=["key", "size"], how="anti", maintain_order="left")


def artifact_files(plan: Plan, existing: pa.Table, base: str) -> pl.DataFrame:
    """What lies in the store for the planned versions: artifact_guid, version, file, key, size, etag."""
    cut = len(base) + 1
    there = pl.DataFrame(pl.from_arrow(existing))
    parts = pl.col("key").str.slice(cut).str.splitn("/", 3).struct
    there = there.with_columns(
        parts.field("field_0").alias("artifact_guid"),
        parts.field("field_1").alias("version"),
        parts.field("field_2").alias("file"),
    )
    return there.join(
        plan.artifacts.select("artifact_guid", "version"), on=["artifact_guid", "version"], how="semi"
    ).sort("artifact_guid", "file")


def to_process(plan: Plan, files: pl.DataFrame, recipe: Recipe) -> pl.DataFrame:
    """Label rows (with `version`) of artifacts that process_func has to see: never finished, or with a file gone since."""
    if recipe.process_digest is None:
        return plan.artifacts.clear()
    made = ~pl.col("file").is_in(list(recipe.files_from_prod)) & ~pl.col("file").str.starts_with(MARKER)
    state = files.group_by("artifact_guid").agg(
        made.sum().alias("made"),
        pl.col("file").is_in(list(recipe.made_files)).sum().alias("required"),
        pl.col("file")
        .filter(pl.col("file").str.starts_with(MARKER))
        .str.strip_prefix(MARKER)
        .cast(pl.Int64, strict=False)
        .max()
        .alias("marked"),
    )
    done = state.filter((pl.col("marked") == pl.col("made")) & (pl.col("required") == len(recipe.made_files)))
    return plan.artifacts.join(done, on="artifact_guid", how="anti", maintain_order="left")
