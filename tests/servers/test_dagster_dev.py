"""A killed test leaves no server behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.servers.dagster_dev import REPOSITORY


def processes_of(home: Path) -> list[int]:
    """The processes that have this Dagster home in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"DAGSTER_HOME={home}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_killed_test_leaves_no_dagster_dev_behind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    code = (
        "import sys, time; from pathlib import Path; from tests.servers.dagster_dev import dagster_dev\n"
        "with dagster_dev(Path(sys.argv[1]), {}): print('ready', flush=True); time.sleep(600)"
    )
    test = subprocess.Popen([sys.executable, "-c", code, str(home)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert test.stdout is not None
    assert test.stdout.readline() == "ready\n"
    assert processes_of(home)
    os.kill(test.pid, signal.SIGKILL)
    test.wait()
    test.stdout.close()
    deadline = time.monotonic() + 120
    while left := processes_of(home):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.2)
