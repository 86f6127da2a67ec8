"""Changed labels or files start the next run of those who ask, once; the others are shown to be stale."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from docml_assets.experiment.folder import ExperimentFolder, experiment_folders
from docml_assets.partitions import OPERATION_TAG, PRODUCTION_UNCHANGED, TRIGGER_TAG, register
from docml_assets.runs.claims import Claim, claim_run, read_claim, write_snapshot
from docml_assets.sensors import new_data
from docml_assets.sensors.new_data import NewDataCursor, State, changed, decide, is_in_progress, new_data_sensor
from docml_assets.steps.reconciliation import versions
from docml_contract.names import RunPlace
from resources.labels import LabelSource
from resources.store import Store
from resources.store.manifests import publish_bytes
from tests.docml_assets.assets.materializing import listed
from tests.docml_assets.experiment.experiments import FUNCTIONS, SETTINGS, settings_text, write_experiment
from tests.docml_assets.sensors.ticking import Daemon, apply, environment_of, evaluate, runs_by_partition

NAME = "new_data_sensor"
OLD, NEW = {"production_labels": "1", "production_files": "1"}, {"production_labels": "2", "production_files": "1"}


def state(**changes: Any) -> State:
    newest = Claim(
        experiment="EXP-1",
        run=1,
        settings_text=SETTINGS,
        functions_source=FUNCTIONS,
        trigger=changes.pop("trigger", {}),
        request_id="r",
        created_at="2026-01-01T00:00:00+00:00",
    )
    values: dict[str, Any] = {
        "newest_reconciled": True,
        "made_of": OLD,
        "current": NEW,
        "in_progress": False,
        "settled": True,
        "wanted": True,
        **changes,
    }
    return State(newest=newest, **values)


@pytest.mark.parametrize(
    ("changes", "decision"),
    [
        ({}, "start"),
        ({"current": OLD}, "nothing"),
        ({"wanted": False}, "nothing"),
        ({"settled": False}, "wait"),
        ({"in_progress": True}, "start"),  # it has read what it was made of; the next run queues behind it
        ({"in_progress": True, "newest_reconciled": False}, "wait"),
        ({"newest_reconciled": False}, "start"),  # failed before it read anything
        ({"trigger": {"kind": NAME, "versions": NEW}, "newest_reconciled": False}, "continue"),
        ({"trigger": {"kind": NAME, "versions": NEW}}, "nothing"),
        ({"trigger": {"kind": NAME, "versions": OLD}}, "start"),
        ({"trigger": {"kind": "cli", "versions": NEW}}, "start"),
    ],
)
def test_decisions(changes: dict[str, Any], decision: str) -> None:
    assert decide(state(**changes)) == decision


def test_changed_names_the_assets() -> None:
    assert changed(state()) == ["production_labels"]
    assert changed(state(made_of={})) == ["production_labels", "production_files"]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


class World:
    """A label database, production files, experiments and their runs."""

    def __init__(self, root: Path, instance: dg.DagsterInstance) -> None:
        self.root = root
        self.database = root / "labels.sqlite"
        with closing(sqlite3.connect(self.database)) as connection, connection:
            connection.execute("create table document_labels (artifact_guid text, label text, sha256 text)")
        self.label("a", "x")
        self.file("a", "one")
        self.daemon = Daemon(
            NAME,
            instance,
            environment_of(
                root, DOCML_LABELS_URL=f"sqlite:///{self.database}", DOCML_PRODUCTION_FILES=str(root / "production")
            ),
        )
        self.store = Store.open(str(root / "store"), environment={})

    def label(self, guid: str, label: str) -> None:
        connection = sqlite3.connect(self.database)
        with connection:
            connection.execute("delete from document_labels where artifact_guid = ?", (guid,))
            connection.execute("insert into document_labels values (?, ?, ?)", (guid, label, guid))
        connection.close()

    def file(self, guid: str, text: str, name: str = "raw_text.json") -> None:
        folder = self.root / "production" / guid
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    def experiment(self, name: str = "EXP-1", settings: str = "RERUN_ON_NEW_DATA = true") -> Path:
        return write_experiment(self.root / "experiments", name, settings_text(settings))

    def run(self, number: int, name: str = "EXP-1") -> None:
        """Claim a run as `docml run` does, and reconcile it."""
        folder = ExperimentFolder.load(self.root / "experiments" / name)
        claim_run(self.store, folder, number, trigger={"kind": "cli"}, request_id=f"cli {number}")
        self.reconcile(number, name)

    def reconcile(self, number: int, name: str = "EXP-1") -> None:
        """What the run's reconciliation leaves, as far as the sensor reads it."""
        claim = self.claim(number, name)
        write_snapshot(self.store, claim)
        inputs = versions(
            claim.settings,
            LabelSource(f"sqlite:///{self.database}", {}),
            Store.open(str(self.root / "production"), environment={}),
        )
        publish_bytes(
            self.store,
            RunPlace(name, number).reconciliation,
            {},
            asset="reconciled_data",
            experiment=name,
            run=number,
            cache_key="",
            data_version="",
            inputs=inputs,
            code_version="1",
        )

    def claim(self, number: int, name: str = "EXP-1") -> Claim:
        claim = read_claim(self.store, name, number)
        assert claim is not None
        return claim

    def finish(self) -> None:
        """End all Dagster runs."""
        for run in self.daemon.instance.get_runs():
            if not run.is_finished:
                self.daemon.instance.report_run_canceled(run)


@pytest.fixture
def world(tmp_path: Path, instance: dg.DagsterInstance) -> World:
    return World(tmp_path, instance)


def test_it_is_off_until_switched_on() -> None:
    assert new_data_sensor.default_status == dg.DefaultSensorStatus.STOPPED


def test_changed_labels_start_the_next_run_once(world: World) -> None:
    world.experiment()
    assert world.daemon.ticks(2) == []  # no run yet: nothing to repeat
    world.run(1)
    assert world.daemon.ticks(3) == []
    world.label("a", "y")
    assert world.daemon.tick() == []  # it may go on changing
    assert world.daemon.tick() == ["EXP-1|2"]
    assert world.daemon.ticks(3) == []
    claim = world.claim(2)
    assert claim.parent_run == 1
    assert claim.trigger["kind"] == NAME
    assert claim.trigger["changed"] == ["production_labels"]
    assert claim.trigger["previous_run"] == 1
    (run,) = world.daemon.instance.get_runs()
    assert json.loads(run.tags[TRIGGER_TAG]) == claim.trigger
    world.reconcile(2)
    world.finish()
    assert world.daemon.ticks(3) == []


def test_back_and_forth_are_two_changes(world: World) -> None:
    world.experiment()
    world.run(1)
    started = []
    for number, label in enumerate(["y", "x", "y"], start=2):
        world.label("a", label)
        started += world.daemon.ticks(3)
        world.reconcile(number)
        world.finish()
    assert started == ["EXP-1|2", "EXP-1|3", "EXP-1|4"]


def test_changed_files_start_it_too_and_other_files_do_not(world: World) -> None:
    world.experiment()
    world.run(1)
    world.file("a", "something", name="other.json")
    assert world.daemon.ticks(3) == []
    world.file("a", "two")
    assert world.daemon.ticks(3) == ["EXP-1|2"]
    assert world.claim(2).trigger["changed"] == ["production_files"]


def test_the_next_free_number_and_the_frozen_settings(world: World) -> None:
    world.experiment(settings="RERUN_ON_NEW_DATA = true\nSPLIT_SEED = 5")
    world.run(3)
    world.experiment(settings="RERUN_ON_NEW_DATA = true\nSPLIT_SEED = 6\nTRAINING_INSTANCE_TYPE = ml.g5.2xlarge")
    world.label("a", "y")
    assert world.daemon.ticks(3) == ["EXP-1|4"]
    assert world.claim(4).settings.split_seed == 5
    (run,) = world.daemon.instance.get_runs()
    assert json.loads(run.tags[OPERATION_TAG])["training_instance_type"] == "ml.g5.2xlarge"


def test_without_the_key_the_run_is_shown_to_be_stale_and_nothing_starts(world: World) -> None:
    world.experiment(settings="")
    world.run(1)
    instance = world.daemon.instance
    made = dg.AssetMaterialization("reconciled_data", partition=register(instance, "EXP-1", 1))
    instance.report_runless_asset_event(made)
    world.daemon.ticks(2)
    world.label("a", "y")
    assert world.daemon.ticks(4) == []
    records = instance.fetch_observations(dg.AssetKey("production_labels"), limit=10).records
    observed = [record.asset_observation for record in records]
    assert len(observed) == 2  # one a version, not one a tick
    assert {seen.partition for seen in observed if seen} == {"EXP-1|1"}
    assert len({seen.tags["dagster/data_version"] for seen in observed if seen and seen.tags}) == 2
    assert listed(instance, PRODUCTION_UNCHANGED) == {"FAILED": ["EXP-1|1"]}
    history = instance.event_log_storage.get_asset_check_execution_history(PRODUCTION_UNCHANGED, limit=10)
    evaluations = [record.event.asset_check_evaluation for record in history if record.event]
    assert [(seen.passed, seen.partition) for seen in evaluations if seen] == [(False, "EXP-1|1")]
    newest = evaluations[0]
    assert newest is not None
    assert newest.severity == dg.AssetCheckSeverity.WARN
    assert "production_labels changed" in (newest.description or "")
    world.label("a", "z")  # a second warning is refused by Dagster, and not tried
    assert world.daemon.ticks(2) == []
    world.daemon.cursor = None
    assert world.daemon.ticks(2) == []


def test_a_change_is_seen_by_every_run_that_has_read_production(world: World) -> None:
    world.experiment(settings="")
    world.run(1)
    world.run(2)
    world.daemon.ticks(2)
    world.label("a", "y")
    assert world.daemon.ticks(2) == []
    records = world.daemon.instance.fetch_observations(dg.AssetKey("production_labels"), limit=10).records
    assert [record.partition_key for record in reversed(records)] == ["EXP-1|2", "EXP-1|1", "EXP-1|2"]


def test_a_run_that_has_not_read_yet_is_waited_for(world: World) -> None:
    world.experiment()
    world.run(1)
    folder = ExperimentFolder.load(world.root / "experiments" / "EXP-1")
    claim_run(world.store, folder, 2, trigger={"kind": "cli"}, request_id="cli 2")
    world.label("a", "y")
    tags = {"dagster/partition": "EXP-1|2"}
    place = RunPlace("EXP-1", 2)
    assert not is_in_progress(world.daemon.instance, place)

    @dg.job(name="run_experiment")
    def other() -> None: ...

    world.daemon.instance.create_run_for_job(other, tags=tags, status=dg.DagsterRunStatus.STARTED)
    assert is_in_progress(world.daemon.instance, place)
    assert world.daemon.ticks(4) == []
    world.reconcile(2)  # it read the new labels
    assert world.daemon.ticks(3) == []


def test_mistakes_are_said_once_and_stop_nobody_else(world: World) -> None:
    flags = "RERUN_ON_NEW_DATA = true\nRUN_RECONCILIATION = false"
    for name, settings in (
        ("EXP-0", "RERUN_ON_NEW_DATA = true"),
        ("EXP-1", "RERUN_ON_NEW_DATA = true"),
        ("EXP-2", flags),
    ):
        world.experiment(name, settings)
        world.run(1, name)
    (world.root / "experiments" / "EXP-0" / "settings.ini").write_text("[settings]\nRUN_NUM = x\n")
    world.label("a", "y")
    cursor, said, started = NewDataCursor(), [], []
    for _ in range(4):
        watch = new_data.Watch(
            experiment_folders(world.root / "experiments"),
            world.store,
            new_data.Production(
                LabelSource(f"sqlite:///{world.database}", {}),
                Store.open(str(world.root / "production"), environment={}),
            ),
            lambda place: False,
            lambda place: False,
        )
        cursor, findings = watch.look(cursor)
        said += findings.reports
        started += [str(launch) for launch in findings.launches]
    assert started == ["EXP-1 run 2 starts (reconciliation, preparation, training, inference)"]
    assert len(said) == 2
    assert "EXP-0" in said[0]
    assert "RUN_RECONCILIATION is off" in said[1]


def test_a_database_that_does_not_answer_starts_nothing(world: World) -> None:
    world.experiment()
    world.run(1)
    world.database.rename(world.root / "gone")
    assert world.daemon.ticks(3) == []
    (world.root / "gone").rename(world.database)
    world.label("a", "y")
    assert world.daemon.ticks(3) == ["EXP-1|2"]


class Killed(BaseException):
    """Stands for a kill: nothing after it happens."""


@pytest.mark.parametrize("place", ["claimed", "evaluated", "partition added", "run made"])
def test_a_kill_anywhere_starts_no_second_run(world: World, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world.experiment()
    world.run(1)
    world.label("a", "y")
    world.daemon.tick()
    daemon = world.daemon

    def at(reached: str) -> None:
        if reached == place:
            raise Killed

    def claim_and_die(*arguments: Any, **named: Any) -> Claim:
        claim = original(*arguments, **named)
        at("claimed")
        return claim

    original = new_data.claim_next
    monkeypatch.setattr(new_data, "claim_next", claim_and_die)
    for _ in range(3):
        try:
            apply(NAME, daemon.instance, evaluate(NAME, daemon.instance, daemon.environment, daemon.cursor), at)
        except Killed:
            continue  # the cursor was not saved
    monkeypatch.setattr(new_data, "claim_next", original)
    daemon.ticks(4)
    assert runs_by_partition(daemon.instance) == {"EXP-1|2": 1}
    assert read_claim(world.store, "EXP-1", 3) is None
