"""What every artifact should consist of, and what of it is not there yet. Pure functions over tables."""

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from docml_assets.reconcile.findings import MAX_ROWS, ReconciliationFindings, findings_table, printable
from docml_assets.reconcile.labels import drop_duplicates
from docml_contract.base import short
from resources.store.safe_names import refusal

_PLAIN_KEY = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}/[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$"
# Written by the platform after process_func's files, with their number in the name: `.processed-3`.
MARKER = ".processed-"
# Artifacts looked at together: joins of a million strings at once would take more memory than the tables.
CHUNK = 100_000
SOURCE = pl.col("artifact_guid") + "/" + pl.col("file")


KEY = pl.col("artifact_guid") + "/" + pl.col("version") + "/" + pl.col("file")


def key_below(base: str) -> pl.Expr:
    """The key of a file of a version, for artifacts that lie below `base`."""
    return pl.lit(f"{base}/") + KEY


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
class ReconciliationPlan:
    """artifacts: the label rows of the kept artifacts, with `version`. files: their files from production, one row each:
    artifact_guid, file, size, source_etag, version; sorted by artifact_guid and file. incomplete: artifact_guid, file of
    artifacts that lack a file in production. Keys are made when they are needed: a million of them are 100 MB."""

    artifacts: pl.DataFrame
    files: pl.DataFrame
    incomplete: pl.DataFrame


def production_files(listing: pa.Table, names: Sequence[str], findings: ReconciliationFindings) -> pl.DataFrame:
    """The wanted files of the production listing: artifact_guid, file, size, source_etag; sorted. Unsafe keys are counted."""
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
    table = pl.DataFrame(pl.from_arrow(listing))
    parts = [
        table.select(
            pl.lit("").alias("artifact_guid"), pl.lit("").alias("file"), "size", pl.col("etag").alias("source_etag")
        ).clear()
    ]
    for name in sorted(names):
        guid = pl.col("key").str.strip_suffix(f"/{name}").alias("artifact_guid")
        found = table.filter(pl.col("key").str.ends_with(f"/{name}"))
        parts.append(found.select(guid, pl.lit(name).alias("file"), "size", pl.col("etag").alias("source_etag")))
    files = pl.concat(parts, rechunk=False)
    return files if len(names) == 1 and files["artifact_guid"].is_sorted() else files.sort("artifact_guid", "file")


def _judged(keys: list[str], findings: ReconciliationFindings) -> pa.Array:
    """Which of the unusual keys are safe and `<guid>/<file>`; the others are counted."""
    accepted, refused = [], []
    for key in keys:
        segments = key.split("/")
        reasons = [reason for segment in segments if (reason := refusal(segment)) is not None]
        accepted.append(not reasons and len(segments) == 2)
        if reasons:
            refused.append({"source": "files", "name": printable(key), "reason": reasons[0]})
    findings.funnel["production files refused"] = len(refused)
    findings.funnel["production files elsewhere"] = len(keys) - sum(accepted) - len(refused)
    findings.refused = pa.concat_tables([findings.refused, findings_table("refused", refused)])
    return pa.array(accepted, pa.bool_())


def _aligned(rows: pl.DataFrame, files: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Both tables, sorted by artifact_guid, cut at the same GUIDs."""
    starts = list(range(CHUNK, rows.height, CHUNK))
    guids = files["artifact_guid"]
    cuts = [0, *(guids.search_sorted(rows["artifact_guid"][start], side="left") for start in starts), files.height]
    bounds = [0, *starts, rows.height]
    for i in range(len(bounds) - 1):
        yield rows.slice(bounds[i], bounds[i + 1] - bounds[i]), files.slice(cuts[i], cuts[i + 1] - cuts[i])


def _matches(rows: pl.DataFrame, files: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Which rows have files, and which files have a row."""
    with_files, with_row = [pl.Series([], dtype=pl.Boolean)], [pl.Series([], dtype=pl.Boolean)]
    for some_rows, some_files in _aligned(rows, files):
        with_files.append(some_rows["artifact_guid"].is_in(some_files["artifact_guid"].implode()))
        with_row.append(some_files["artifact_guid"].is_in(some_rows["artifact_guid"].implode()))
    return pl.concat(with_files), pl.concat(with_row)


def join(
    rows: pl.DataFrame, files: pl.DataFrame, recipe: Recipe, findings: ReconciliationFindings
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Artifacts that have a label and files, duplicates dropped; and their files. Both sorted, before and after."""
    if recipe.files_from_prod:
        with_files, with_row = _matches(rows, files)
        without, unlabelled = rows.filter(~with_files), files.filter(~with_row)["artifact_guid"].unique().sort()
        findings.funnel["labels without files"] = without.height
        findings.funnel["artifacts without labels"] = len(unlabelled)
        findings.labels_without_files = findings_table(
            "labels_without_files", without.select("artifact_guid", "label").head(MAX_ROWS).iter_rows(named=True)
        )
        findings.files_without_labels = findings_table(
            "files_without_labels", ({"artifact_guid": guid} for guid in unlabelled.head(MAX_ROWS))
        )
        rows = rows.filter(with_files) if without.height else rows
    findings.funnel["joined"] = rows.height
    rows = drop_duplicates(rows, findings)
    findings.funnel["deduplicated"] = rows.height
    return rows, files.filter(_matches(rows, files)[1])


def make_plan(rows: pl.DataFrame, files: pl.DataFrame, recipe: Recipe) -> ReconciliationPlan:
    """Versions for joined artifacts; `files` with their source etags."""
    expected = pl.DataFrame({"file": recipe.files_from_prod}, schema={"file": pl.String})
    artifacts, planned, incomplete = [], [], []
    for some_rows, some_files in _aligned(rows, files):
        counts = some_files.group_by("artifact_guid").agg(pl.len().alias("n"))
        full = counts.filter(pl.col("n") == expected.height)["artifact_guid"]
        if expected.height and len(full) < some_rows.height:
            complete = pl.col("artifact_guid").is_in(full.implode())
            all_files = some_rows.filter(~complete).select("artifact_guid").join(expected, how="cross")
            incomplete.append(
                all_files.join(some_files, on=["artifact_guid", "file"], how="anti", maintain_order="left")
            )
            some_rows, some_files = some_rows.filter(complete), some_files.filter(complete)
        versioned = some_rows.with_columns(_versions(some_rows, some_files, recipe))
        artifacts.append(versioned)
        versions = versioned.select("artifact_guid", "version")
        # Only the new column is made; the others go on sharing their memory.
        of_files = some_files.select("artifact_guid").join(versions, on="artifact_guid", maintain_order="left")
        planned.append(some_files.with_columns(of_files["version"]))
    nothing = pl.DataFrame(schema={"artifact_guid": pl.String, "file": pl.String})
    return ReconciliationPlan(
        pl.concat(artifacts, rechunk=False),
        pl.concat(planned, rechunk=False),
        pl.concat([nothing, *incomplete], rechunk=False),
    )


def _versions(rows: pl.DataFrame, files: pl.DataFrame, recipe: Recipe) -> pl.Series:
    """16 hex digits an artifact, in the order of `rows`: its source versions, process_func, and the run of an OVERWRITE."""
    sources = files.group_by("artifact_guid", maintain_order=True).agg(
        (pl.col("file") + "\x1f" + pl.col("source_etag")).str.join("\x1e").alias("sources")
    )
    texts = rows.select("artifact_guid").join(sources, on="artifact_guid", how="left", maintain_order="left")["sources"]
    tail = f"\0{recipe.process_digest or ''}\0{recipe.overwrite_run or ''}".encode()
    hashes = [short(hashlib.sha256((text or "").encode() + tail).hexdigest()) for text in texts]
    return pl.Series("version", hashes, dtype=pl.String)


def to_copy(plan: ReconciliationPlan, existing: pa.Table) -> pl.DataFrame:
    """The planned files that are not among the existing ones (`<guid>/<version>/<file>`, sorted) with their size."""
    missing = [plan.files.clear()]
    keys = existing["key"]
    for files in plan.files.iter_slices(CHUNK):
        wanted = files.with_columns(KEY.alias("key"))
        first, last = wanted["key"].min(), wanted["key"].max()
        start = bisect.bisect_left(range(len(keys)), first, key=lambda i: keys[i].as_py())
        end = bisect.bisect_right(range(len(keys)), last, key=lambda i: keys[i].as_py())
        there = pl.DataFrame(pl.from_arrow(existing.select(["key", "size"]).slice(start, end - start)))
        missing.append(wanted.join(there, on=["key", "size"], how="anti", maintain_order="left").drop("key"))
    return pl.concat(missing, rechunk=False)


def artifact_files(plan: ReconciliationPlan, existing: pa.Table) -> pl.DataFrame:
    """What lies in the store for the planned versions: artifact_guid, version, file, size, etag."""
    there = pl.DataFrame(pl.from_arrow(existing))
    parts = pl.col("key").str.splitn("/", 3).struct
    there = there.select(
        parts.field("field_0").alias("artifact_guid"),
        parts.field("field_1").alias("version"),
        parts.field("field_2").alias("file"),
        "size",
        "etag",
    )
    return there.join(
        plan.artifacts.select("artifact_guid", "version"), on=["artifact_guid", "version"], how="semi"
    ).sort("artifact_guid", "file")


def to_process(plan: ReconciliationPlan, files: pl.DataFrame, recipe: Recipe) -> pl.DataFrame:
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
