"""The services beside S3 are lost in the middle of a run: the label database ends it with a sentence, the Dagster daemon is not missed."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.matrix import played_by
from tests.faults.tiny import EXPERIMENT, Tiny, Warm, wait_for
from tests.servers.dagster_dev import DagsterDev, dagster_dev
from tests.servers.postgres import PostgresServer, postgres

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

STOPPED_SECONDS = 3
# Some seconds of work for the server before the first row.
LONG = "WHERE (SELECT count(*) FROM generate_series(1, 5000000) AS n(i) WHERE i % 7 = 3) > 0"
ACTIVE = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ILIKE '%generate_series%' AND pid <> pg_backend_pid()"


@pytest.fixture(scope="module")
def database(undisturbed: Tiny) -> Iterator[PostgresServer]:
    """A server with the labels of the tiny experiment."""
    with postgres() as server:
        server.execute("CREATE TABLE document_labels (artifact_guid TEXT PRIMARY KEY, label TEXT, sha256 TEXT)")
        with closing(sqlite3.connect(undisturbed.root / "labels.sqlite")) as labels:
            for row in labels.execute("SELECT artifact_guid, label, sha256 FROM document_labels").fetchall():
                server.execute("INSERT INTO document_labels VALUES ('{}', '{}', '{}')".format(*row))
        yield server


def asks(server: PostgresServer) -> bool:
    """Whether somebody's query is under way."""
    import psycopg2

    with closing(psycopg2.connect(server.url)) as connection, connection.cursor() as cursor:
        cursor.execute(ACTIVE)
        found = cursor.fetchone()
    return bool(found and found[0])


@pytest.mark.parametrize(
    "name", [name for _, name, _ in played_by("test_a_label_database_that_is_lost_in_the_middle_of_the_query")]
)
def test_a_label_database_that_is_lost_in_the_middle_of_the_query(
    name: str, database: PostgresServer, undisturbed: Tiny, warm: Warm, tmp_path: Path
) -> None:
    tiny = undisturbed.copy(tmp_path / "tiny", without=[""], home=False)
    tiny.environment["DOCML_LABELS_URL"] = database.url
    settings = tiny.root / "experiments" / EXPERIMENT / "settings.ini"
    settings.write_text(settings.read_text().replace("FROM document_labels", f"FROM document_labels {LONG}"))
    run = ("run", EXPERIMENT, "-v", "--steps", "reconciliation")
    command = warm.start(tiny, *run)
    assert wait_for(lambda: asks(database) or command.wait(0.001) is not None, 300), command.text
    assert command.code is None, command.text
    server = database.process()
    number = signal.Signals[name.split()[0]]
    os.kill(server, number)
    if name == "SIGINT twice":
        os.kill(server, number)
    if name == "SIGSTOP":
        time.sleep(STOPPED_SECONDS)
        os.kill(server, signal.SIGCONT)
    code = command.wait(600)
    assert "Traceback" not in command.text, command.text
    if code != 0:  # it serves to their end the queries that are under way where the signal allows that
        assert code == 1, command.text
        assert "reconciled_data failed: " in command.text
        assert not (tiny.place / "run_1/reconciliation/MANIFEST.json").exists()
        wait_for(lambda: not (Path("/proc") / str(server)).exists(), 30)
        database.start()
        warm.run(tiny, *run, log="again")
    database.start()
    assert tiny.versions()["run_1/labels"] == undisturbed.versions()["run_1/labels"]
    assert not tiny.wait_until_quiet(), tiny.leftovers()


def daemon_of(dev: DagsterDev) -> int:
    """The process of a `dagster dev` that evaluates sensors."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == dev.process.pid and b"daemon" in (entry / "cmdline").read_bytes():
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError("no daemon runs")


@pytest.mark.parametrize("name", [name for _, name, _ in played_by("test_a_run_goes_on_without_its_daemon")])
def test_a_run_goes_on_without_its_daemon(name: str, undisturbed: Tiny, tmp_path: Path) -> None:
    taken = ("run_1/training", "run_1/inference", "run_1/deployment", "run_1/checkpoints", "run_1/jobs")
    tiny = undisturbed.copy(tmp_path / "tiny", without=taken)
    tiny.slow("train", 0.3)
    number = signal.Signals[name.split()[0]]
    before = tiny.dagster_runs()["SUCCESS"]
    try:
        with dagster_dev(tiny.home, tiny.environment) as dev:
            daemon = daemon_of(dev)
            dev.launch(EXPERIMENT, 1)
            assert wait_for(lambda: any(p.role == "trainer" for p in tiny.processes()), 120)
            for _ in range(2 if name == "SIGINT twice" else 1):
                os.kill(daemon, number)
            if name == "SIGSTOP":
                time.sleep(STOPPED_SECONDS)
                os.kill(daemon, signal.SIGCONT)
            # Without its daemon a `dagster dev` ends altogether, and leaves the run to itself.
            assert wait_for(lambda: tiny.dagster_runs().get("SUCCESS", 0) > before, 300), dev.log.read_text()[-3000:]
        for path in tiny.temporary.glob("tmp*"):
            if path.is_socket():  # of Dagster's own code servers, which leave it when they are ended like that
                path.unlink()
        assert not tiny.wait_until_quiet(60), tiny.leftovers()
        assert tiny.versions() == undisturbed.versions()
        assert tiny.report() == undisturbed.report()
    finally:
        tiny.end_everything()
