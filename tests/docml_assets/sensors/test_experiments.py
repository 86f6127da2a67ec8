"""One run a new folder, one run a changed RUN_NUM, whatever happens in between."""

import json
import multiprocessing
import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from docml_assets.experiment.folder import ExperimentFolder, experiment_folders
from docml_assets.partitions import OPERATION_TAG, STEPS_TAG, TRIGGER_TAG
from docml_assets.runs.claims import Claim, claim_run, read_claim
from docml_assets.sensors import experiments, launching
from docml_assets.sensors.experiments import ExperimentsCursor, FolderMemory, experiment_sensor, look, remember
from resources.store import Store
from tests.docml_assets.experiment.experiments import FUNCTIONS, settings_text, write_experiment
from tests.docml_assets.sensors.ticking import Daemon, apply, environment_of, evaluate, runs_by_partition

NAME = "experiment_sensor"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


@pytest.fixture
def daemon(instance: dg.DagsterInstance, tmp_path: Path) -> Daemon:
    (tmp_path / "experiments").mkdir()
    return Daemon(NAME, instance, environment_of(tmp_path))


def experiment(tmp_path: Path, name: str = "EXP-1", settings: str = "", functions: str = FUNCTIONS) -> Path:
    return write_experiment(tmp_path / "experiments", name, settings_text(settings), functions)


def test_it_is_off_until_switched_on() -> None:
    assert experiment_sensor.default_status == dg.DefaultSensorStatus.STOPPED
    assert experiment_sensor.description


def test_remembering_is_a_pure_comparison() -> None:
    old = FolderMemory(digest="a", handled=True, launched=(1,), said="x")
    assert remember(None, "a") == FolderMemory(digest="a")
    assert remember(old, "a") == old
    assert remember(old, "b") == FolderMemory(digest="b", launched=(1,))


def test_a_new_folder_starts_one_run_after_two_ticks(daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.ticks(2) == []
    experiment(tmp_path, settings="RUN_TUNING = false\nRUN_INFERENCE = false")
    assert daemon.tick() == []
    assert daemon.tick() == ["EXP-1|1"]
    assert daemon.ticks(5) == []
    assert daemon.instance.get_dynamic_partitions("experiment") == ["EXP-1"]
    assert daemon.instance.get_dynamic_partitions("experiment_run") == ["EXP-1|1"]
    (run,) = daemon.instance.get_runs()
    assert run.tags[STEPS_TAG] == "reconciliation,preparation,training"
    assert json.loads(run.tags[OPERATION_TAG])["run_inference"] is False
    assert json.loads(run.tags[TRIGGER_TAG])["kind"] == NAME
    assert read_claim(Store.open(str(tmp_path / "store"), environment={}), "EXP-1", 1) is not None


def test_a_folder_that_is_still_written_waits(daemon: Daemon, tmp_path: Path) -> None:
    for size in range(4):
        experiment(tmp_path, settings=f"SPLIT_SEED = {size}")
        assert daemon.tick() == []
    assert daemon.tick() == ["EXP-1|1"]
    claim = read_claim(Store.open(str(tmp_path / "store"), environment={}), "EXP-1", 1)
    assert claim is not None
    assert claim.settings.split_seed == 3


def test_a_changed_number_starts_one_more(daemon: Daemon, tmp_path: Path) -> None:
    experiment(tmp_path)
    assert daemon.ticks(3) == ["EXP-1|1"]
    experiment(tmp_path, settings="RUN_NUM = 4\nSPLIT_SEED = 4")
    assert daemon.ticks(5) == ["EXP-1|4"]
    experiment(tmp_path, settings="RUN_NUM = 1")  # back to a run that was started
    assert daemon.ticks(3) == []


def test_edits_of_a_frozen_run_are_reported_once(daemon: Daemon, tmp_path: Path) -> None:
    experiment(tmp_path)
    daemon.ticks(3)
    experiment(tmp_path, settings="SPLIT_SEED = 4")
    said = []
    for _ in range(5):
        assert daemon.tick() == []
        said.append(daemon.skipped or "")
    (report,) = [text for text in said if "SPLIT_SEED" in text]
    assert "take run 2: docml run EXP-1 --next, or RUN_NUM = 2" in report
    assert said[-1] == f"Looked at 1 experiment in {tmp_path}/experiments: 1 was edited after its run was claimed."
    experiment(tmp_path, settings="SPLIT_SEED = 13\nTRAINING_INSTANCE_TYPE = ml.g5.2xlarge")  # does not freeze
    assert daemon.tick() == []
    assert ": 1 waits.\nEXP-1: new, or changed; it is dealt with at the next tick" in (daemon.skipped or "")
    for _ in range(2):
        assert daemon.tick() == []
        assert (daemon.skipped or "").endswith("experiments: 1 as before.")


def test_mistakes_are_reported_once_all_of_them_and_stop_nobody_else(daemon: Daemon, tmp_path: Path) -> None:
    experiment(tmp_path, "EXP-0", settings="SPLIT = 1, 2\nRUN_NUM = x", functions="def (")
    (tmp_path / "experiments" / "bad name").mkdir()
    (tmp_path / "experiments" / "bad name" / "settings.ini").touch()
    experiment(tmp_path, "EXP-9")
    daemon.tick()
    result = evaluate(NAME, daemon.instance, daemon.environment, daemon.cursor)
    assert [request.run_key for request in result.run_requests or []] == ["EXP-9|1"]
    daemon.ticks(1)
    first = evaluate_reports(daemon, tmp_path)
    assert first == []  # said at the second tick, not again
    experiment(tmp_path, "EXP-0")
    assert daemon.ticks(3) == ["EXP-0|1"]


def test_each_tick_tells_the_state_of_every_experiment(daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.tick() == []
    assert daemon.skipped == f"no experiment folder in {tmp_path}/experiments"
    experiment(tmp_path, "EXP-broken", settings="SPLIT = 1, 2\nRUN_NUM = x")
    experiment(tmp_path, "EXP-good")
    assert daemon.ticks(2) == ["EXP-good|1"]
    for _ in range(2):  # not "nothing new" while a folder is broken
        assert daemon.tick() == []
        first, *mistakes = (daemon.skipped or "").splitlines()
        assert first == f"Looked at 2 experiments in {tmp_path}/experiments: 1 is broken, 1 as before."
        assert re.match(
            r"EXP-broken: nothing starts, since \d{4}-\d\d-\d\d \d\d:\d\d UTC: .*settings\.ini:6: ", mistakes[0]
        )
        assert "settings.ini:7: " in mistakes[1]
    (run,) = daemon.instance.get_runs()
    daemon.instance.report_run_failed(run)
    assert daemon.tick() == []
    said = daemon.skipped or ""
    assert "1 is broken, 1 has a failed run." in said
    assert f"EXP-good: run 1 failed: Dagster run {run.run_id[:8]} says why" in said
    assert len(daemon.cursor or "") < 300


def test_a_tick_says_where_its_time_ended(tmp_path: Path) -> None:
    said = launching.describe_states({"EXP-1": ("unchanged", "")}, ("EXP-1", "EXP-2"), tmp_path)
    assert (
        said
        == f"Looked at 1 of 2 experiments in {tmp_path}: 1 as before. The others come at the next tick: one takes up to 4 s."
    )


def evaluate_reports(daemon: Daemon, tmp_path: Path) -> list[str]:
    folders = experiment_folders(tmp_path / "experiments")
    _, findings = look(
        ExperimentsCursor.read(daemon.cursor), folders, Store.open(str(tmp_path / "store"), environment={}), {}
    )
    return findings.reports


def test_reports_list_every_mistake(tmp_path: Path) -> None:
    path = experiment(tmp_path, settings="SPLIT = 1, 2\nRUN_NUM = x", functions="def (")
    store = Store.open(str(tmp_path / "store"), environment={})
    cursor, findings = look(ExperimentsCursor(), {"EXP-1": path}, store, {})
    assert findings.reports == []
    cursor, findings = look(cursor, {"EXP-1": path}, store, {})
    (report,) = findings.reports
    assert all(place in report for place in ("settings.ini:6", "settings.ini:7", "user_defined_funcs.py:1"))


def test_what_the_environment_lacked_may_come(tmp_path: Path) -> None:
    path = experiment(tmp_path)
    store = Store.open(str(tmp_path / "store"), environment={})
    environment = {"DOCML_STORE": store.url, "DOCML_ENV": "cloud"}
    cursor, _ = look(ExperimentsCursor(), {"EXP-1": path}, store, environment)
    cursor, findings = look(cursor, {"EXP-1": path}, store, environment)
    assert "DOCML_ENV = cloud" in findings.reports[0]
    cursor, findings = look(cursor, {"EXP-1": path}, store, environment)
    assert findings.reports == []
    cursor, findings = look(cursor, {"EXP-1": path}, store, {"DOCML_STORE": store.url})
    assert [str(launch) for launch in findings.launches] == [
        "EXP-1 run 1 starts (reconciliation, preparation, training, inference)"
    ]


def test_nothing_to_perform_claims_nothing(daemon: Daemon, tmp_path: Path) -> None:
    flags = "RUN_RECONCILIATION = false\nRUN_PREPARATION = false\nRUN_TRAINING = false\nRUN_INFERENCE = false"
    experiment(tmp_path, settings=flags)
    assert daemon.ticks(2) == []
    assert "every RUN_* flag is off" in (daemon.skipped or "")
    assert not (tmp_path / "store").exists()


def test_a_run_that_somebody_else_claimed_is_theirs(daemon: Daemon, tmp_path: Path) -> None:
    path = experiment(tmp_path)
    store = Store.open(str(tmp_path / "store"), environment={})
    claim_run(store, ExperimentFolder.load(path), 1, trigger={"kind": "cli"}, request_id="cli")
    assert daemon.ticks(4) == []
    assert (daemon.skipped or "").endswith("experiments: 1 as before.")


def test_a_reset_cursor_starts_nothing_again(daemon: Daemon, tmp_path: Path) -> None:
    experiment(tmp_path)
    assert daemon.ticks(3) == ["EXP-1|1"]
    for cursor in (None, "", "{", '{"other": 1}'):
        daemon.cursor = cursor
        assert daemon.ticks(3) == []


def test_folders_that_are_no_experiments(daemon: Daemon, tmp_path: Path) -> None:
    write_experiment(tmp_path / "experiments", ".EXP-1.part")
    (tmp_path / "experiments" / "__pycache__").mkdir()
    assert daemon.ticks(3) == []
    assert "no experiment folder in " in (daemon.skipped or "")
    daemon.environment["DOCML_EXPERIMENTS"] = str(tmp_path / "missing")
    assert daemon.ticks(2) == []


def test_a_tick_that_runs_out_of_time_goes_on_at_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {f"EXP-{n}": experiment(tmp_path, f"EXP-{n}") for n in range(5)}
    store = Store.open(str(tmp_path / "store"), environment={})
    times = iter(range(10_000))
    monkeypatch.setattr(launching, "BUDGET_SECONDS", 3)
    monkeypatch.setattr(launching.in_turn, "__defaults__", (lambda: float(next(times)),))
    cursor, started = ExperimentsCursor(), []
    for _ in range(12):
        cursor, findings = look(cursor, folders, store, {"DOCML_STORE": store.url})
        assert len(findings.launches) <= 3
        started += [launch.claim.experiment for launch in findings.launches]
    assert sorted(started) == sorted(folders)


def test_two_hundred_experiments_with_fifty_runs_each(daemon: Daemon, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for number in range(200):
        experiment(tmp_path, f"EXP-{number}", settings="RUN_NUM = 50")
        for run in range(1, 51):
            (store / f"EXP-{number}" / f"run_{run}" / "experiment").mkdir(parents=True)
        (store / f"EXP-{number}" / "run_50" / "experiment" / "CLAIM.json").write_text(
            json.dumps(
                {
                    "experiment": f"EXP-{number}",
                    "run": 50,
                    "settings_text": settings_text("RUN_NUM = 50"),
                    "functions_source": FUNCTIONS,
                    "trigger": {},
                    "request_id": "other",
                    "created_at": "2026-01-01T00:00:00+00:00",
                }
            )
        )
    assert daemon.ticks(8) == []
    cursor = ExperimentsCursor.read(daemon.cursor)
    assert len(cursor.folders) == 200
    assert all(seen.handled for seen in cursor.folders.values())


# What opening an instance imports: the ticks' processes are forked from one that has them.
INSTANCE_MODULES = (
    "alembic.command",
    "dagster._core.instance.factory",
    "dagster._core.launcher.default_run_launcher",
    "dagster._core.run_coordinator.default_run_coordinator",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._core.storage.sqlite_storage",
    "docml_assets.definitions",
    "resources.store.folder",
)
CRASHES = ("claimed", "evaluated", "partition added", "run made")


def crashing_tick(
    home: str, environment: dict[str, str], cursor_file: str, place: str | None, after: float | None
) -> None:
    """One tick of a daemon that is killed at `place`, or `after` so many seconds, wherever it is then."""

    def at(reached: str) -> None:
        if reached == place:
            os.kill(os.getpid(), signal.SIGKILL)

    def claim_and(*arguments: Any, **named: Any) -> Claim:
        claim = claim_run(*arguments, **named)
        at("claimed")
        return claim

    experiments.claim_run = claim_and
    with dg.DagsterInstance.from_config(home) as instance:
        if after is not None:
            signal.setitimer(signal.ITIMER_REAL, after)  # SIGALRM is not handled: it ends the process as SIGKILL does
        saved = Path(cursor_file)
        result = evaluate(NAME, instance, environment, saved.read_text() if saved.exists() else None)
        apply(NAME, instance, result, at)
        draft = saved.with_suffix(".part")
        draft.write_text(result.cursor or "")
        draft.replace(saved)


def test_a_hundred_ticks_with_kills_start_each_run_once(tmp_path: Path) -> None:
    """New folders and RUN_NUM edits, while the daemon's process is killed again and again, wherever it is."""
    chance = random.Random(13)
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*INSTANCE_MODULES, "tests.docml_assets.sensors.test_experiments"])
    expected: dict[str, int] = {}
    killed = 0
    for number in range(100):
        if number % 25 == 0:
            experiment(tmp_path, f"EXP-{number}")
            expected[f"EXP-{number}|1"] = 1
        if number % 25 == 12:
            experiment(tmp_path, f"EXP-{number - 12}", settings="RUN_NUM = 2")
            expected[f"EXP-{number - 12}|2"] = 1
        place = chance.choice(CRASHES) if chance.random() < 0.7 else None
        after = chance.uniform(0.0, 0.05) if place is None else None
        arguments = (str(home), environment_of(tmp_path), str(tmp_path / "cursor"), place, after)
        process = context.Process(target=crashing_tick, args=arguments)
        process.start()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL, -signal.SIGALRM), number
        killed += process.exitcode != 0
    assert killed >= 20
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert runs_by_partition(instance) == expected
