"""Events are written small, databases of ended runs made small, and lose nothing; what ended runs never came to goes, and partition keys of what is gone."""

import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance.ref import InstanceRef

from docml_assets import history
from docml_assets.assets.checks import preview_features
from docml_assets.cli.home import INSTANCE_SETTINGS
from docml_assets.history import RUNS, CompactInstance, forget_removed, forget_unevaluated, shrink, shrink_ended_runs
from docml_assets.partitions import experiment_runs, partition_tags, register
from docml_assets.sensors.run_failures import orphaned_jobs_sensor
from tests.docml_assets.assets.materializing import listed
from tests.docml_assets.sensors.test_run_failures import ListedJobs


@dg.job
def nothing() -> None:
    """A run of no steps."""


@dg.asset(partitions_def=experiment_runs)
def thing(context: dg.AssetExecutionContext) -> None:
    """Run 2 of it fails."""
    if context.partition_key.endswith("|2"):
        raise dg.Failure("as it should")


with preview_features():

    @dg.asset_check(asset=thing, partitions_def=experiment_runs)
    def is_well() -> dg.AssetCheckResult:
        """Always, once it is asked."""
        return dg.AssetCheckResult(passed=True)


SETTINGS = next(path for path in INSTANCE_SETTINGS if path.is_file())
PLAIN = "telemetry:\n  enabled: false\n"


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a|1"]), code_version="1")
def made() -> dg.MaterializeResult[None]:
    """An asset with a version."""
    return dg.MaterializeResult(data_version=dg.DataVersion("v1"), metadata={"how": "made, zufällig ✓"})


@dg.asset_check(asset=made)
def looked_at() -> dg.AssetCheckResult:
    """Its check."""
    return dg.AssetCheckResult(passed=True, description="well")


def materialize(instance: dg.DagsterInstance) -> str:
    """The run that made the asset and looked at it."""
    return dg.materialize([made, looked_at], instance=instance, partition_key="a|1").run_id


def stored(database: Path, table: str = "event_logs", column: str = "event") -> dict[str, int]:
    """SQLite's type -> in how many rows the column has it."""
    with closing(sqlite3.connect(database)) as connection:
        return dict(connection.execute(f"SELECT typeof({column}), count(*) FROM {table} GROUP BY 1").fetchall())


def weight(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT sum(length(CAST(event AS BLOB))) FROM event_logs").fetchone()[0])


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text(PLAIN)
    with dg.DagsterInstance.from_config(str(tmp_path)) as found:
        yield found


def messages(instance: dg.DagsterInstance, run_id: str) -> list[str | None]:
    return [entry.dagster_event.event_type_value for entry in instance.all_logs(run_id) if entry.dagster_event]


def test_events_are_written_compressed_and_say_the_same(tmp_path: Path) -> None:
    said, weights = [], []
    for name, settings in (("plain", PLAIN), ("compact", SETTINGS.read_text())):
        home = tmp_path / name
        home.mkdir()
        (home / "dagster.yaml").write_text(settings)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            assert isinstance(instance, CompactInstance) == (name == "compact")
            run_id = materialize(instance)
            kind = {"compact": "blob", "plain": "text"}[name]
            assert stored(home / RUNS / f"{run_id}.db").keys() == {kind}
            assert stored(home / RUNS / "index.db").keys() == {kind}
            assert stored(home / RUNS / "index.db", "asset_check_executions", "evaluation_event").keys() == {kind}
            found = instance.get_latest_materialization_event(made.key)
            assert found is not None
            assert found.asset_materialization is not None
            assert instance.get_latest_data_version_record(made.key, partition_key="a|1") is not None
            checked = instance.event_log_storage.get_asset_check_execution_history(looked_at.check_key, limit=1)
            assert checked[0].evaluation is not None
            assert checked[0].evaluation.description == "well"
            said.append((messages(instance, run_id), found.asset_materialization))
            weights.append(weight(home / RUNS / f"{run_id}.db"))
    assert said[0] == said[1]
    assert weights[1] < weights[0] / 4


def test_events_of_an_earlier_home_are_read_beside_new_ones(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text(PLAIN)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        earlier = materialize(instance)
        said = messages(instance, earlier)
    (tmp_path / "dagster.yaml").write_text(SETTINGS.read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        later = materialize(instance)
        assert messages(instance, earlier) == said == messages(instance, later)
        assert len(instance.fetch_materializations(made.key, limit=10).records) == 2
        instance.report_engine_event("one more", instance.get_run_by_id(earlier))
        assert len(messages(instance, earlier)) == len(said) + 1
    assert stored(tmp_path / RUNS / "index.db").keys() == {"text", "blob"}
    assert stored(tmp_path / RUNS / f"{earlier}.db")["blob"] == 1


def test_what_was_compressed_can_be_read_for_ever() -> None:
    assert zlib.adler32(history._WORDS) == 3_392_821_572, "what was written with other words cannot be read any more"


def test_settings_serve_a_plain_dagster_dev_which_has_another_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path), config_dir=str(SETTINGS.parent))) as instance:
        run_id = nothing.execute_in_process(instance=instance).run_id
    assert stored(tmp_path / RUNS / f"{run_id}.db").keys() == {"blob"}


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


def test_checks_that_an_ended_run_never_came_to_count_as_not_evaluated(instance: dg.DagsterInstance) -> None:
    job = dg.Definitions([thing], asset_checks=[is_well]).resolve_implicit_global_asset_job_def()
    check = dg.AssetCheckKey(thing.key, "is_well")
    made = []
    for run in (1, 2, 3):
        key = register(instance, "EXP-1", run)
        done = job.execute_in_process(instance=instance, partition_key=key, raise_on_error=False)
        made.append((done.success, len(done.get_asset_check_evaluations())))
    assert made == [(True, 1), (False, 0), (True, 1)]
    canceled, under_way = (
        instance.create_run_for_job(job, tags=dict(partition_tags(register(instance, "EXP-1", run)))) for run in (4, 5)
    )
    instance.report_run_canceled(canceled)
    passed = {"SUCCEEDED": ["EXP-1|1", "EXP-1|3"], "IN_PROGRESS": ["EXP-1|5"]}
    misleading = {**passed, "EXECUTION_FAILED": ["EXP-1|2"], "SKIPPED": ["EXP-1|4"]}
    assert listed(instance, check) == misleading
    forget_unevaluated(instance, within_seconds=-60)
    assert listed(instance, check) == misleading, "these ended before"
    forget_unevaluated(instance, within_seconds=60)
    assert listed(instance, check) == passed
    instance.report_run_failed(under_way)
    with dg.build_sensor_context(instance=instance, resources={"jobs": ListedJobs()}) as context:
        orphaned_jobs_sensor(context)
    assert listed(instance, check) == {"SUCCEEDED": passed["SUCCEEDED"]}


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
