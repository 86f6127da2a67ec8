"""Databases of ended runs are made small and lose nothing; partition keys of what is gone go."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest

from docml_assets.history import RUNS, forget_removed, shrink, shrink_ended_runs
from docml_assets.partitions import register


@dg.job
def nothing() -> None:
    """A run of no steps."""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as found:
        yield found


def messages(instance: dg.DagsterInstance, run_id: str) -> list[str | None]:
    return [entry.dagster_event.event_type_value for entry in instance.all_logs(run_id) if entry.dagster_event]


def test_the_database_of_an_ended_run_is_made_small_and_tells_the_same(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    run_id = nothing.execute_in_process(instance=instance).run_id
    under_way = instance.create_run_for_job(nothing).run_id
    instance.report_engine_event("begins", instance.get_run_by_id(under_way))
    said = messages(instance, run_id)
    database = tmp_path / RUNS / f"{run_id}.db"
    before = database.stat().st_size
    with closing(sqlite3.connect(database)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM event_logs").fetchone()
        assert shrink_ended_runs(instance, tmp_path) == 0, "somebody reads it"
    saved = shrink_ended_runs(instance, tmp_path)
    assert saved == before - database.stat().st_size
    assert database.stat().st_size < before / 3
    assert messages(instance, run_id) == said
    instance.report_engine_event("one more", instance.get_run_by_id(run_id))
    assert len(messages(instance, run_id)) == len(said) + 1
    assert shrink_ended_runs(instance, tmp_path) == 0, "it is small already"
    assert (tmp_path / RUNS / f"{under_way}.db").stat().st_size > 100_000
    assert shrink_ended_runs(instance, tmp_path, within_seconds=-1) == 0


def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    assert shrink(tmp_path / "none.db") == 0
    (tmp_path / "damaged.db").write_bytes(b"\xff" * 10_000)
    assert shrink(tmp_path / "damaged.db") == 0
    assert (tmp_path / "damaged.db").read_bytes() == b"\xff" * 10_000


def test_keys_of_experiments_and_runs_that_are_gone_are_forgotten(instance: dg.DagsterInstance) -> None:
    for experiment, run in (("EXP-1", 1), ("EXP-1", 2), ("EXP-2", 7)):
        register(instance, experiment, run)
    known = {"EXP-1": [1, 2, 3]}
    gone = ["EXP-2", "EXP-2|7"]
    assert forget_removed(instance, known, dry_run=True) == gone
    assert forget_removed(instance, known, dry_run=False) == gone
    assert forget_removed(instance, known, dry_run=False) == []
    assert instance.get_dynamic_partitions("experiment") == ["EXP-1"]
    assert sorted(instance.get_dynamic_partitions("experiment_run")) == ["EXP-1|1", "EXP-1|2"]
