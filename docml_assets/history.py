"""What Dagster keeps of runs, made small and true.

In a home of its own databases (SQLite), Dagster gives every run one with all of its tables and indexes: 120 kB of pages that hold next to
nothing, before the run has said a word.
"""

import contextlib
import sqlite3
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from docml_assets.dagster_internals import forget_unevaluated_checks
from docml_assets.partitions import EXPERIMENT, EXPERIMENT_RUN, partition_key

RUNS = "history/runs"  # below the home: <run id>.db, and an index over all
PAGE_BYTES = 512  # the smallest that SQLite knows
FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
_HEADER = slice(16, 18)  # where a database's page size stands


def shrink(database: Path) -> int:
    """Rewrite the database of an ended run with small pages; how many bytes were saved, 0 where it is in use, small already, or not there."""
    try:
        with database.open("rb") as stream:
            if int.from_bytes(stream.read(_HEADER.stop)[_HEADER], "big") <= PAGE_BYTES:
                return 0
        before = database.stat().st_size
        with contextlib.closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
            # Pages keep their size in WAL mode, in which Dagster has it.
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("VACUUM")
            connection.execute("PRAGMA journal_mode = WAL")
    except (OSError, sqlite3.Error):  # it serves as it is
        return 0
    return before - database.stat().st_size


def shrink_ended_runs(instance: dg.DagsterInstance, home: Path, within_seconds: float | None = None) -> int:
    """Shrink the databases of all ended runs, or of those that were written to within so many seconds; how many bytes were saved."""
    oldest = time.time() - within_seconds if within_seconds is not None else 0.0
    recent = {path.stem: path for path in (home / RUNS).glob("*.db") if _modified(path) >= oldest}
    if not recent:
        return 0
    ended = instance.get_runs(dg.RunsFilter(run_ids=list(recent), statuses=list(FINISHED)))
    return sum(shrink(recent[run.run_id]) for run in ended)


def forget_unevaluated(instance: dg.DagsterInstance, within_seconds: float | None = None) -> None:
    """Have checks that ended runs planned and never evaluated count as not evaluated: of all runs, or of those that ended within so many
    seconds. Their runs say why they ended."""
    oldest = datetime.now(UTC) - timedelta(seconds=within_seconds) if within_seconds is not None else None
    forget_unevaluated_checks(instance, instance.get_runs(dg.RunsFilter(statuses=list(FINISHED), updated_after=oldest)))


def forget_removed(instance: dg.DagsterInstance, known: Mapping[str, Collection[int]], *, dry_run: bool) -> list[str]:
    """Delete the partition keys of experiments and runs that are none any more; `known`: experiment -> its runs. Which keys these are.

    Their events stay, and a key comes back with the next run that has it.
    """
    pairs = {partition_key(name, number) for name, runs in known.items() for number in runs}
    gone = []
    for definition, keys in ((EXPERIMENT, set(known)), (EXPERIMENT_RUN, pairs)):
        for key in sorted(set(instance.get_dynamic_partitions(definition)) - keys):
            gone.append(key)
            if not dry_run:
                instance.delete_dynamic_partition(definition, key)
    return gone


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
