"""A killed test leaves no server behind, whichever moment it is killed at."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.dagster_dev import REPOSITORY
from tests.servers.guard import end_processes_of, guarded_folder, processes_of

SERVERS = {
    "postgres": "from tests.servers.postgres import postgres; server = postgres()",
    "seaweedfs": "from tests.servers.s3 import seaweedfs; server = seaweedfs()",
    "dagster dev": (
        "from pathlib import Path; from tests.servers.dagster_dev import dagster_dev\n"
        "server = dagster_dev(Path(sys.argv[1]) / 'home', {})"
    ),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the server's own folder is made; not below tmp_path, which PostgreSQL's user may not enter."""
    with guarded_folder("docml-guard-") as made:
        made.chmod(0o755)
        yield made
        end_processes_of(made)


def start(folder: Path, server: str) -> "subprocess.Popen[str]":
    """A test that says so once its server answers."""
    code = f"import sys, time\n{SERVERS[server]}\nwith server: print('ready', flush=True); time.sleep(600)"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill(test: "subprocess.Popen[str]", folder: Path) -> None:
    """SIGKILL to the test and its group, and wait until nothing of it is left."""
    os.killpg(test.pid, signal.SIGKILL)
    test.wait()
    assert test.stdout is not None
    test.stdout.close()
    deadline = time.monotonic() + 120
    while left := processes_of(folder):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.2)


@pytest.mark.parametrize("server", SERVERS)
def test_a_killed_test_leaves_no_server_behind(server: str, folder: Path) -> None:
    test = start(folder, server)
    assert test.stdout is not None
    assert test.stdout.readline() == "ready\n"
    assert len(processes_of(folder)) > 1
    kill(test, folder)
    deadline = time.monotonic() + 30
    while made := list(folder.glob("docml-*")):
        assert time.monotonic() < deadline, f"left behind: {made}"
        time.sleep(0.2)


def test_one_that_is_killed_while_postgresql_starts_leaves_nothing_either(folder: Path) -> None:
    test = start(folder, "postgres")
    while set(processes_of(folder)) <= {test.pid}:
        assert test.poll() is None
        time.sleep(0.005)
    kill(test, folder)


def test_only_what_belongs_to_the_folder_is_ended(tmp_path: Path) -> None:
    mine, other = tmp_path / "home", tmp_path / "home2"
    # an interrupt that meets the interpreter while it starts is an exit code of its own
    command = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]
    with (
        subprocess.Popen([*command, str(mine)], stdout=subprocess.PIPE, text=True) as ours,
        subprocess.Popen([*command, str(other)], stdout=subprocess.PIPE, text=True) as theirs,
    ):
        try:
            for started in (ours, theirs):
                assert started.stdout is not None
                assert started.stdout.readline() == "ready\n"
            end_processes_of(mine)
            assert ours.wait() == -signal.SIGINT
            assert theirs.poll() is None
        finally:
            ours.kill()
            theirs.kill()


def test_the_folder_of_a_server_goes_with_the_block() -> None:
    with guarded_folder("docml-guard-") as made:
        (made / "file").write_text("")
    assert not made.exists()
