"""Asking both sides, the database and the stores, and copying production's files into versions of the experiment."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from docml_assets.reconcile.findings import ReconciliationError, ReconciliationFindings
from docml_assets.reconcile.labels import trusted_rows
from docml_assets.reconcile.plan import (
    CHUNK,
    SOURCE,
    Recipe,
    ReconciliationPlan,
    join,
    key_below,
    make_plan,
    production_files,
    to_copy,
)
from docml_assets.reconcile.use_case import UseCaseAtWork
from resources.labels import LabelSource
from resources.store import PARALLEL_FILES, Store

# Key ranges listed at once; more streams gain nothing (bench/listing.py).
SHARDS = 16
# Production may change while it is copied: so often everything is planned again.
ROUNDS = 3
BAR_SECONDS = 0.2
LOG_SECONDS = 10.0

Log = Callable[[str], None]
Progress = Callable[[str, int, int], None]


class ProgressMeter:
    """Counts units of one stage: a bar now and then, a line with rate and time left every few seconds.

    `tick` is cheap: most calls only add one.
    """

    def __init__(self, what: str, total: int, log: Log, progress: Progress) -> None:
        self.what, self.total, self.log, self.progress = what, total, log, progress
        self.done = 0
        self.started = time.monotonic()
        self._bar = self._logged = self.started
        progress(what, 0, total)

    def tick(self) -> None:
        """One unit done. Not for several threads at once."""
        self.done += 1
        now = time.monotonic()
        if now - self._bar < BAR_SECONDS and self.done < self.total:
            return
        self._bar = now
        self.progress(self.what, self.done, self.total)
        if now - self._logged >= LOG_SECONDS and self.done < self.total:
            self._logged = now
            rate = self.rate
            left = (self.total - self.done) / rate if rate else 0.0
            self.log(f"{self.what}: {self.done:,} of {self.total:,}, {rate:,.0f} a second, {left:,.0f} s left")

    @property
    def rate(self) -> float:
        """Units a second so far."""
        seconds = time.monotonic() - self.started
        return self.done / seconds if seconds > 0 else 0.0


@dataclass
class Listings:
    """rows: trusted label rows. files: the wanted production files. And what was left out of both."""

    rows: pl.DataFrame
    of_labels: ReconciliationFindings
    files: pl.DataFrame
    of_files: ReconciliationFindings


@dataclass(frozen=True)
class Sources:
    """Both sides of a reconciliation, and the place in the experiment's store, `base`, where artifacts lie."""

    labels: LabelSource
    query: str
    max_rows: int | None
    production: Store
    store: Store
    base: str
    recipe: Recipe
    use_case: UseCaseAtWork | None = None  # changes the label rows, chooses files

    def ask(self) -> Listings:
        """Ask the database and the production store.

        One after the other: each keeps two cores busy by itself, and what they need on the way would add up, for a million
        artifacts to more than 1 GB. Listings are cut down to what is needed as soon as they are there.
        """
        of_labels = ReconciliationFindings()
        table = self.labels.fetch(self.query, max_rows=self.max_rows)
        rows = trusted_rows(self.use_case.label(table, of_labels) if self.use_case else table, of_labels)
        return Listings(rows, of_labels, *self.list_production())

    def list_existing(self) -> pa.Table:
        """What lies below `base`: key (from there on), size, etag (null in a folder store)."""
        return self.store.below(self.base).list_table("", SHARDS, etags=False)

    def list_production(self) -> tuple[pl.DataFrame, ReconciliationFindings]:
        """The files of FILES_FROM_PROD in production (source_etag null in a folder store), and what was left out."""
        findings = ReconciliationFindings()
        listing = self.production.list_table("", SHARDS, etags=False)
        return production_files(listing, self.recipe.files_from_prod, findings), findings

    def plan(self, listings: Listings) -> tuple[ReconciliationPlan, ReconciliationFindings]:
        """What every artifact should consist of, and what was left out on the way. Uses up `listings.files`."""
        findings = listings.of_labels.together(listings.of_files)
        files, listings.files = listings.files, listings.files.clear()
        rows, files = join(listings.rows, files, self.recipe, findings)
        if self.use_case:
            files = self.use_case.choose(rows, files)
        return make_plan(rows, with_etags(files, SOURCE, "source_etag", self.production), self.recipe), findings


@dataclass
class Copies:
    """What was planned and copied. existing: what lies in the store now. findings: what the last look at production left out."""

    plan: ReconciliationPlan
    findings: ReconciliationFindings
    existing: pa.Table
    files: int = 0
    bytes: int = 0
    repaired: int = 0


def copy_until_settled(sources: Sources, listings: Listings, log: Log, progress: Progress) -> Copies:
    """Plan and copy; then list both sides again, and again copy what is missing or has changed meanwhile."""
    copied = pl.DataFrame(schema={"artifact_guid": pl.String, "version": pl.String, "file": pl.String})
    same = copied.columns
    made = Copies(*sources.plan(listings), sources.list_existing())
    for round_number in range(ROUNDS + 1):
        if round_number:
            made.existing = sources.list_existing()
            listings.files, listings.of_files = sources.list_production()
            made.plan, made.findings = sources.plan(listings)
        stale = copied.join(made.plan.files, on=same, how="anti")
        if stale.height:
            # Copied under the version of what production held before: their content is not what the version says.
            log(f"{stale.height} files changed in production while they were copied; taking the new ones")
            sources.store.delete(stale.select(key_below(sources.base)).to_series())
        missing = to_copy(made.plan, made.existing)
        if missing.is_empty():
            return made
        if round_number == ROUNDS:
            break
        _copy(sources, made, missing, log, progress, repair=round_number > 0)
        copied = pl.concat([copied, missing.select(same)])
    names = ", ".join(missing.head(20).select(SOURCE).to_series())
    raise ReconciliationError(
        f"{missing.height} production files could not be copied in {ROUNDS} rounds; they keep changing or vanishing: {names}"
    )


def _copy(sources: Sources, made: Copies, missing: pl.DataFrame, log: Log, progress: Progress, *, repair: bool) -> None:
    total = missing.height
    reused = made.plan.files.height - total
    log(f"copying {total:,} files ({float(missing['size'].sum()) / 1e6:,.1f} MB); {reused:,} are there already")
    meter = ProgressMeter("files copied", total, log, progress)
    keys = [SOURCE.alias("source"), key_below(sources.base).alias("key")]
    pairs = (pair for some in missing.iter_slices(CHUNK) for pair in some.select(keys).iter_rows())
    gone = sources.store.copy_many(sources.production, pairs, copied=meter.tick)
    made.files += meter.done
    made.repaired += meter.done if repair else 0
    lost = pl.Series([lost.source for lost in gone], dtype=pl.String)
    made.bytes += int(missing.filter(~SOURCE.is_in(lost.implode()))["size"].sum())
    log(f"copied {meter.done:,} files, {meter.rate:,.0f} a second")


def with_etags(files: pl.DataFrame, key: pl.Expr, etag: str, store: Store) -> pl.DataFrame:
    """`files` with the etags that the listing left out, as a folder's does."""
    unknown = pl.col(etag).is_null()
    if not files[etag].null_count():
        return files
    lacking = files.filter(unknown)
    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        found = [stored.etag if stored else None for stored in pool.map(store.head, lacking.select(key).to_series())]
    known = pl.concat([files.filter(~unknown), lacking.with_columns(pl.Series(etag, found, dtype=pl.String))])
    # A file that went between the listing and now is as good as never listed.
    return known.filter(~unknown).sort("artifact_guid", "file")
