"""Asking both sides, the database and the stores, and planning from their answers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from docml_assets.experiment.functions import defined_functions
from docml_assets.experiment.settings.settings import Settings
from docml_assets.experiment.source import functions_digest
from docml_assets.reconcile.findings import Findings
from docml_assets.reconcile.label_rows import trusted_rows
from docml_assets.reconcile.plan import SOURCE, Plan, Recipe, join, make_plan, production_files
from docml_contract.names import RunPlace
from resources.labels import LabelSource
from resources.store import PARALLEL_FILES, Store

PROCESS_FUNC = "process_func"
# Key ranges listed at once; more streams gain nothing (bench/listing.py).
SHARDS = 16


@dataclass
class Gathered:
    """rows: trusted label rows. files: the wanted production files. existing: what lies in the store. And what was left out."""

    rows: pl.DataFrame
    of_labels: Findings
    files: pl.DataFrame
    of_files: Findings
    existing: pa.Table


def gather(
    labels: LabelSource,
    query: str,
    max_rows: int | None,
    production: Store,
    names: Sequence[str],
    store: Store,
    base: str,
) -> Gathered:
    """Ask the database and both stores.

    One after the other: each keeps two cores busy by itself, and what they need on the way would add up, for a million artifacts
    to more than 1 GB. Listings are cut down to what is needed as soon as they are there.
    """
    of_labels = Findings()
    rows = trusted_rows(labels.fetch(query, max_rows=max_rows), of_labels)
    return Gathered(rows, of_labels, *list_production(production, names), list_existing(store, base))


def recipe_of(place: RunPlace, settings: Settings, functions_source: str) -> Recipe:
    """What decides versions besides the source files."""
    with_process = PROCESS_FUNC in defined_functions(functions_source)
    return Recipe(
        files_from_prod=tuple(sorted(set(settings.files_from_prod))),
        files_on_research=tuple(sorted(set(settings.files_on_research))),
        process_digest=functions_digest(functions_source, [PROCESS_FUNC]) if with_process else None,
        overwrite_run=place.number if settings.overwrite else None,
    )


def list_existing(store: Store, base: str) -> pa.Table:
    """What lies below `base`: key (from there on), size, etag (null in a folder store)."""
    return store.below(base).list_table("", SHARDS, etags=False)


def list_production(production: Store, names: Sequence[str]) -> tuple[pl.DataFrame, Findings]:
    """The files called `names` in production (source_etag null in a folder store), and what was left out."""
    findings = Findings()
    return production_files(production.list_table("", SHARDS, etags=False), names, findings), findings


def plan_run(gathered: Gathered, production: Store, recipe: Recipe) -> tuple[Plan, Findings]:
    """What every artifact should consist of, and what was left out on the way. Uses up `gathered.files`."""
    findings = gathered.of_labels.together(gathered.of_files)
    files, gathered.files = gathered.files, gathered.files.clear()
    rows, files = join(gathered.rows, files, recipe, findings)
    return make_plan(rows, with_etags(files, SOURCE, "source_etag", production), recipe), findings


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
