"""What every artifact should consist of, and what of it is not there yet. Pure functions over tables."""

import bisect
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from docml_assets.reconcile.findings import MAX_ROWS, ReconciliationFindings, findings_table, printable
from docml_assets.reconcile.labels import drop_duplicates, near_misses
from docml_contract.base import short
from docml_contract.file_names import is_optional, is_pattern, matches, refusal
from docml_contract.untrusted_files import MARKER
from resources.store import LINK_SIZE

_PLAIN_KEY = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}/[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$"
# Artifacts looked at together: joins of a million strings at once would take more memory than the tables.
CHUNK = 100_000
SOURCE = pl.col("artifact_guid") + "/" + pl.col("file")


KEY = pl.col("artifact_guid") + "/" + pl.col("version") + "/" + pl.col("file")
# The column of a label row's version: no query yields a column of this name, so that a `version` of its own stays the row's.
VERSION = "docml: version"


def key_below(base: str) -> pl.Expr:
    """The key of a file of a version, for artifacts that lie below `base`."""
    return pl.lit(f"{base}/") + KEY


@dataclass(frozen=True)
class Recipe:
    """What decides an artifact's version besides its source files, and which files it consists of: names and patterns."""

    files_from_prod: tuple[str, ...]
    files_on_research: tuple[str, ...]
    process_digest: str | None
    overwrite_run: int | None
    files_optional: tuple[str, ...] = ()

    @property
    def required_from_prod(self) -> tuple[str, ...]:
        """The names and patterns of which every artifact has a file in production."""
        return tuple(entry for entry in self.files_from_prod if not is_optional(entry, self.files_optional))

    @property
    def made_files(self) -> tuple[str, ...]:
        """The names and patterns of files that process_func has to make."""
        others = (entry for entry in self.files_on_research if entry not in self.files_from_prod)
        return tuple(entry for entry in others if not is_optional(entry, self.files_optional))


@dataclass(frozen=True)
class ReconciliationPlan:
    """artifacts: the label rows of the kept artifacts, with VERSION. files: their files from production, one row each:
    artifact_guid, file, size, source_etag, version; sorted by artifact_guid and file. incomplete: artifact_guid, file of
    artifacts that lack a file (or any file of a pattern) in production. Keys are made when they are needed: a million of them
    are 100 MB."""

    artifacts: pl.DataFrame
    files: pl.DataFrame
    incomplete: pl.DataFrame

    @property
    def versions(self) -> pl.DataFrame:
        """artifact_guid, version of every kept artifact."""
        return self.artifacts.select("artifact_guid", pl.col(VERSION).alias("version"))


def entries_with_files(files: pl.DataFrame, entries: Sequence[str]) -> pl.DataFrame:
    """artifact_guid, entry: which of the names and patterns every artifact has a file of. files: artifact_guid, file."""
    names = files["file"].unique()
    pairs = [(name, entry) for name in names for entry in entries if matches(name, entry)]
    schema = {"file": pl.String, "entry": pl.String}
    meant = pl.DataFrame(pairs, schema=schema, orient="row")
    found = files.select("artifact_guid", "file").join(meant, on="file").select("artifact_guid", "entry")
    return found.unique() if any(map(is_pattern, entries)) else found


def production_files(listing: pa.Table, names: Sequence[str], findings: ReconciliationFindings) -> pl.DataFrame:
    """The wanted files of the production listing: artifact_guid, file, size, source_etag; sorted. Unsafe keys are counted."""
    findings.funnel |= {
        "production files": listing.num_rows,
        "production files refused": 0,
        "production files elsewhere": 0,
    }
    listing = _without_links(listing, findings)
    plain = pc.match_substring_regex(listing["key"], _PLAIN_KEY)
    if not pc.all(plain).as_py():
        suspects = listing.filter(pc.invert(plain))
        accepted = suspects.filter(_judged(suspects["key"].to_pylist(), findings))
        listing = pa.concat_tables([listing.filter(plain), accepted])
    table = pl.DataFrame(pl.from_arrow(listing))
    guid, etag = pl.col("key").str.split("/").list.first(), pl.col("etag").alias("source_etag")
    columns = (guid.alias("artifact_guid"), pl.lit("").alias("file"), "size", etag)
    parts = [table.clear().select(*columns)]
    for name in sorted(_file_names(table, names)):
        guid = pl.col("key").str.strip_suffix(f"/{name}").alias("artifact_guid")
        found = table.filter(pl.col("key").str.ends_with(f"/{name}"))
        parts.append(found.select(guid, pl.lit(name).alias("file"), "size", etag))
    files = pl.concat(parts, rechunk=False)
    return files if len(parts) == 2 and files["artifact_guid"].is_sorted() else files.sort("artifact_guid", "file")


def _without_links(listing: pa.Table, findings: ReconciliationFindings) -> pa.Table:
    """The listing without symbolic links, which are counted: they lead to files that are not production's."""
    are_links = pc.equal(listing["size"], LINK_SIZE)
    links = listing.filter(are_links)["key"]
    if not len(links):
        return listing
    findings.funnel["production files refused"] = len(links)
    rows = ({"source": "files", "name": printable(key), "reason": "a symbolic link"} for key in links.to_pylist())
    findings.refused = pa.concat_tables([findings.refused, findings_table("refused", rows)])
    return listing.filter(pc.invert(are_links))


def _file_names(listing: pl.DataFrame, entries: Sequence[str]) -> set[str]:
    """The names among `entries`, and the names in the listing that its patterns match."""
    names = {entry for entry in entries if not is_pattern(entry)}
    if len(names) == len(entries):
        return names
    there: set[str] = set()
    for some in listing.iter_slices(CHUNK):
        there |= set(some.select(pl.col("key").str.extract(r"([^/]*)$")).to_series().unique())
    return names | {name for name in there if any(matches(name, entry) for entry in entries)}


def _judged(keys: list[str], findings: ReconciliationFindings) -> pa.Array:
    """Which of the unusual keys are safe and `<guid>/<file>`; the others are counted."""
    accepted, refused = [], []
    for key in keys:
        segments = key.split("/")
        reasons = [reason for segment in segments if (reason := refusal(segment)) is not None]
        accepted.append(not reasons and len(segments) == 2)
        if reasons:
            refused.append({"source": "files", "name": printable(key), "reason": reasons[0]})
    findings.funnel["production files refused"] += len(refused)
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
        nearly = near_misses(without, unlabelled)
        if nearly.height:
            findings.funnel["labels without files that nearly match"] = nearly.height
            findings.near_misses = findings_table("near_misses", nearly.iter_rows(named=True))
        rows = rows.filter(with_files) if without.height else rows
    findings.funnel["joined"] = rows.height
    rows = drop_duplicates(rows, findings)
    findings.funnel["deduplicated"] = rows.height
    return rows, files.filter(_matches(rows, files)[1])


def make_plan(rows: pl.DataFrame, files: pl.DataFrame, recipe: Recipe) -> ReconciliationPlan:
    """Versions for joined artifacts; `files` with their source etags."""
    expected = pl.DataFrame({"entry": recipe.required_from_prod}, schema={"entry": pl.String})
    artifacts, planned, incomplete = [], [], []
    for some_rows, some_files in _aligned(rows, files):
        found = entries_with_files(some_files, recipe.required_from_prod)
        counts = found.group_by("artifact_guid").agg(pl.len().alias("n"))
        full = counts.filter(pl.col("n") == expected.height)["artifact_guid"]
        if expected.height and len(full) < some_rows.height:
            complete = pl.col("artifact_guid").is_in(full.implode())
            all_entries = some_rows.filter(~complete).select("artifact_guid").join(expected, how="cross")
            lacking = all_entries.join(found, on=["artifact_guid", "entry"], how="anti", maintain_order="left")
            incomplete.append(lacking.rename({"entry": "file"}))
            some_rows, some_files = some_rows.filter(complete), some_files.filter(complete)
        versions = _versions(some_rows, some_files, recipe)
        artifacts.append(some_rows.with_columns(versions.alias(VERSION)))
        of_artifact = some_rows.select("artifact_guid").with_columns(versions)
        # Only the new column is made; the others go on sharing their memory.
        of_files = some_files.select("artifact_guid").join(of_artifact, on="artifact_guid", maintain_order="left")
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
    return there.join(plan.versions, on=["artifact_guid", "version"], how="semi").sort("artifact_guid", "file")


def not_planned(files: pl.DataFrame, plan: ReconciliationPlan) -> pl.DataFrame:
    """Of what lies in the store (see `artifact_files`), what process_func made: neither from production nor a mark."""
    others = files.filter(~pl.col("file").str.starts_with(MARKER))
    return others.join(plan.files, on=["artifact_guid", "file"], how="anti", maintain_order="left")


def to_process(plan: ReconciliationPlan, files: pl.DataFrame, recipe: Recipe) -> pl.DataFrame:
    """Label rows (with VERSION) of artifacts that process_func has to see: never finished, or with a file gone since."""
    if recipe.process_digest is None:
        return plan.artifacts.clear()
    marks = files.filter(pl.col("file").str.starts_with(MARKER))
    marked = marks.group_by("artifact_guid").agg(
        pl.col("file").str.strip_prefix(MARKER).cast(pl.Int64, strict=False).max().alias("marked")
    )
    made = not_planned(files, plan).group_by("artifact_guid").agg(pl.len().cast(pl.Int64).alias("made"))
    required = entries_with_files(files, recipe.made_files).group_by("artifact_guid").agg(pl.len().alias("required"))
    state = (
        marked.join(made, on="artifact_guid", how="left").join(required, on="artifact_guid", how="left").fill_null(0)
    )
    done = state.filter((pl.col("marked") == pl.col("made")) & (pl.col("required") == len(recipe.made_files)))
    return plan.artifacts.join(done, on="artifact_guid", how="anti", maintain_order="left")


def lacking_files(
    plan: ReconciliationPlan, files: pl.DataFrame, recipe: Recipe, already: set[str]
) -> Iterable[dict[str, Any]]:
    """Files of FILES_ON_RESEARCH that production lacks, or that process_func did not make."""
    for guid, file in plan.incomplete.iter_rows():
        yield {"artifact_guid": guid, "file": file, "reason": "not in production", "traceback": ""}
    if not recipe.made_files:
        return
    expected = plan.artifacts.select("artifact_guid").join(
        pl.DataFrame({"entry": list(recipe.made_files)}), how="cross"
    )
    found = entries_with_files(files, recipe.made_files)
    missing = expected.join(found, on=["artifact_guid", "entry"], how="anti", maintain_order="left")
    reason = "process_func did not write it" if recipe.process_digest else "nothing makes it: there is no process_func"
    for guid, file in missing.iter_rows():
        if guid not in already:
            yield {"artifact_guid": guid, "file": file, "reason": reason, "traceback": ""}
