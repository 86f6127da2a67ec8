"""The Dagster home that the command line and the UI share: made once by several at a time, and explained where it cannot be used."""

import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from docml_assets.cli import main
from docml_assets.cli.home import HomeError, _first_use, dagster_instance, hold, prepare_dagster_home
from tests.docml_assets.world import World


def test_the_default_home_gets_the_settings_and_keeps_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", "")
    home = prepare_dagster_home()
    assert home == tmp_path / ".dagster_home"
    assert home.stat().st_mode & 0o077 == 0, "nobody else's business"
    assert os.environ["DAGSTER_HOME"] == str(home)
    settings = home / "dagster.yaml"
    assert "nux" in settings.read_text()
    settings.write_text("telemetry:\n  enabled: false\n")
    assert prepare_dagster_home() == home
    assert settings.read_text().startswith("telemetry")


def first_use(home: Path, failed: "multiprocessing.Queue[str]") -> None:
    """What a command does with a home that may not be there yet."""
    try:
        os.environ["DAGSTER_HOME"] = str(home)
        with dagster_instance(prepare_dagster_home()) as instance:
            instance.add_dynamic_partitions("experiment_run", [str(os.getpid())])
    except BaseException as error:
        failed.put(repr(error))


def test_processes_that_use_a_fresh_home_first_at_once_all_succeed(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for number in range(2):
        home, failed = tmp_path / str(number), fork.Queue()
        users = [fork.Process(target=first_use, args=(home, failed)) for _ in range(5)]
        for user in users:
            user.start()
        for user in users:
            user.join(120)
        assert failed.empty(), failed.get()
        with dg.DagsterInstance.from_config(str(home)) as instance:
            assert len(instance.get_dynamic_partitions("experiment_run")) == 5


def stand_still(home: Path, ready: "multiprocessing.Queue[int]") -> None:
    with _first_use(home):
        ready.put(os.getpid())
        signal.pause()


def test_a_process_that_stands_still_while_it_opens_the_home_is_named_and_the_remedy_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("docml_assets.cli.home.PATIENCE_SECONDS", 0.0)
    fork = multiprocessing.get_context("fork")
    ready = fork.Queue()
    other = fork.Process(target=stand_still, args=(tmp_path, ready))
    other.start()
    number = ready.get()
    said = ""

    def look(_: float) -> None:
        nonlocal said
        said += capsys.readouterr().err
        if said:
            os.kill(int(re.findall(r"kill -KILL (\d+)", said)[0]), signal.SIGKILL)
            other.join()

    monkeypatch.setattr("docml_assets.cli.home.time.sleep", look)
    with _first_use(tmp_path):
        assert f"Waiting for process {number}, which is opening the Dagster home {tmp_path}" in said


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """`docml run` on a home: what it says when it cannot."""
    world.write_experiment()
    for name, value in world.environment.items():
        monkeypatch.setenv(name, value)

    def docml_run(home: Path) -> str:
        monkeypatch.setenv("DAGSTER_HOME", str(home))
        with pytest.raises(SystemExit) as ended:
            main(["run", "EXP-1", "--steps", "reconciliation"])
        assert ended.value.code == 1
        said = capsys.readouterr().err
        assert said.startswith("docml: ")
        assert "Traceback" not in said
        return said

    return docml_run


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home as Dagster leaves it after its first use."""
    home = tmp_path_factory.mktemp("pristine")
    use(home)
    return home


def use(home: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home))
        with dagster_instance(prepare_dagster_home()) as instance:
            instance.add_dynamic_partitions("experiment_run", ["1"])
            instance.report_runless_asset_event(dg.AssetMaterialization("anything"))


@pytest.mark.parametrize("name", ["a%41", "what?", "a#b", "a\nb"])
def test_odd_characters_are_refused_before_anything_is_made(
    run: Callable[[Path], str], tmp_path: Path, name: str
) -> None:
    assert "expected a path without %, ?, #" in run(tmp_path / name)
    assert not (tmp_path / name).exists()


WRONG_SETTINGS = {
    "no YAML": b"telemetry: [\n",
    "unknown": b"nonsense: 1\n",
    "a list": b"- a\n",
    "endless": b"[" * 20_000,
    "no UTF-8": b"a: \xff\xfe",
    "no such module": b"run_launcher: {module: nowhere.at.all, class: X}\n",
    "without the class that reads its events": b"",
}


@pytest.mark.parametrize("kind", WRONG_SETTINGS)
def test_wrong_settings_are_named_and_the_remedy_works(
    run: Callable[[Path], str], pristine: Path, tmp_path: Path, kind: str
) -> None:
    home = shutil.copytree(pristine, tmp_path / "home")
    (home / "dagster.yaml").write_bytes(WRONG_SETTINGS[kind])
    assert f"{home}/dagster.yaml is not what Dagster expects" in run(home)
    (home / "dagster.yaml").unlink()
    use(home)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("history/runs.db", lambda path: path.write_bytes(b"noise" * 1000)),
        ("history/runs.db", lambda path: os.truncate(path, 5000)),
        ("schedules/schedules.db", lambda path: path.write_bytes(b"noise" * 1000)),
    ],
    ids=["noise", "truncated", "schedules"],
)
def test_damaged_databases_are_said_and_the_remedy_works(
    run: Callable[[Path], str], pristine: Path, tmp_path: Path, file: str, damage: Callable[[Path], object]
) -> None:
    home = shutil.copytree(pristine, tmp_path / "home")
    damage(home / file)
    said = run(home)
    assert f"move the folder away (mv {home} {home}.damaged)" in said
    home.rename(f"{home}.damaged")
    use(home)


def test_a_home_that_two_first_uses_left_broken_is_said(
    run: Callable[[Path], str], pristine: Path, tmp_path: Path
) -> None:
    home = shutil.copytree(pristine, tmp_path / "home")
    with sqlite3.connect(home / "history" / "runs.db") as database:
        database.execute("INSERT INTO alembic_version VALUES ('0000')")
    database.close()
    assert f"the Dagster home {home} cannot be used" in run(home)


def test_a_home_that_is_no_folder_or_not_writable_is_said(run: Callable[[Path], str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", Path("/sys/docml-home")):
        assert f"the Dagster home {home} cannot be used" in run(home)


@pytest.mark.parametrize("name", ["dagster.yaml", "history", ".first_use.lock", "served"])
def test_what_stands_in_the_place_of_something_is_named_and_the_remedy_works(
    run: Callable[[Path], str], pristine: Path, tmp_path: Path, name: str
) -> None:
    home = shutil.copytree(pristine, tmp_path / "home")
    place = home / name
    if place.is_dir():
        shutil.rmtree(place)
        place.write_text("")
    else:
        place.unlink()
        place.mkdir()
    said = run(home)
    moved = re.findall(r"cannot be used: (\S+) is (?:a|no) folder\. Move it away", said)
    assert moved, said
    Path(moved[0]).rename(tmp_path / "away")
    use(home)


def test_one_home_has_one_ui(tmp_path: Path) -> None:
    hold(tmp_path, "http://127.0.0.1:3000")
    with pytest.raises(HomeError, match=r"is running already: open http://127\.0\.0\.1:3000, or stop it first"):
        hold(tmp_path, "http://127.0.0.1:3001")
