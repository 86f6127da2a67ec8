"""A container's first process: nothing starts before it may, nothing outlives it, and nobody can fill its log."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resources.jobs.local.container import INIT
from resources.jobs.local.container_init import LAST_BYTES, BoundedLog
from resources.processes import start_of

# Starts a process in a session of its own, without the container's environment, and writes its number.
DAEMON = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True, env={})
open("daemon.part", "w").write(str(child.pid)); os.replace("daemon.part", "daemon")
"""
SLEEP = "time.sleep(600)"


class Init:
    """A first process whose command is Python code."""

    def __init__(self, folder: Path, code: str) -> None:
        self.folder = folder
        self.log = folder / "log"
        command = [sys.executable, "-c", code]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(INIT), str(self.log), "1000000", "1000", *command],
            cwd=folder,
            stdin=subprocess.PIPE,
        )
        self.stdin = self.process.stdin
        assert self.stdin is not None

    def go(self) -> None:
        assert self.stdin is not None
        self.stdin.write(b"g")
        self.stdin.flush()

    def end(self) -> int:
        assert self.stdin is not None
        self.stdin.close()
        return self.process.wait(60)

    def daemon(self) -> int:
        wait_for((self.folder / "daemon").exists)
        return int((self.folder / "daemon").read_text())


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Init]]:
    made: list[Init] = []

    def init(code: str) -> Init:
        made.append(Init(tmp_path, code))
        return made[-1]

    yield init
    for each in made:
        each.end()


def test_it_ends_as_its_command_ends(make: Callable[[str], Init]) -> None:
    init = make("print('hello'); raise SystemExit(7)")
    init.go()
    assert init.process.wait(60) == 7
    assert init.log.read_text() == "hello\n"


def test_it_ends_by_the_signal_that_ended_its_command(make: Callable[[str], Init]) -> None:
    init = make("import os; os.kill(os.getpid(), 9)")
    init.go()
    assert init.process.wait(60) == -signal.SIGKILL


def test_sigterm_goes_to_the_command(make: Callable[[str], Init]) -> None:
    init = make(
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print('up', flush=True); time.sleep(600)"
    )
    init.go()
    wait_for(lambda: init.log.exists() and init.log.read_text())
    init.process.terminate()
    assert init.process.wait(60) == 143


def test_nothing_runs_before_it_is_told_to(make: Callable[[str], Init], tmp_path: Path) -> None:
    init = make("open('ran', 'w')")
    assert init.end() == 0
    assert not (tmp_path / "ran").exists()


def test_what_the_command_left_behind_ends_with_it(make: Callable[[str], Init]) -> None:
    init = make(DAEMON)
    init.go()
    assert init.process.wait(60) == 0
    assert start_of(init.daemon()) is None


def test_everything_ends_when_its_supervisor_is_gone(make: Callable[[str], Init]) -> None:
    init = make(DAEMON + SLEEP)
    init.go()
    daemon = init.daemon()
    assert init.end() == -signal.SIGKILL
    assert start_of(daemon) is None


def test_the_command_ends_when_its_init_is_killed(make: Callable[[str], Init]) -> None:
    init = make(
        f"import os, time; open('pid.part', 'w').write(str(os.getpid())); os.replace('pid.part', 'pid'); {SLEEP}"
    )
    init.go()
    wait_for((init.folder / "pid").exists)
    init.process.kill()
    wait_for(lambda: start_of(int((init.folder / "pid").read_text())) is None)


def test_a_log_cannot_be_filled(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = BoundedLog(str(path), 10_000, 100)
    log.write(b"x" * 5000)
    log.write(b"x" * 5000 + b"\nsecond\n")
    first, second = path.read_text().splitlines()
    assert first == "x" * 100 + " … (9900 bytes more)"
    assert second == "second"
    for number in range(20_000):
        log.write(f"line {number}\n".encode())
    log.write(b'DOCML {"event": "epoch"}\n')
    log.write(b"the end")
    log.close()
    lines = path.read_text().splitlines()
    assert path.stat().st_size < 10_000 + LAST_BYTES + 1000
    assert lines[2] == "line 0"
    assert 'DOCML {"event": "epoch"}' in lines
    assert any("bytes of output were left out here" in line for line in lines)
    assert lines[-2:] == ["line 19999", "the end"]


def test_a_flood_of_output_is_bounded_end_to_end(make: Callable[[str], Init]) -> None:
    init = make("import os\nfor _ in range(30): os.write(1, b'hello world\\n' * 100_000)\nprint('done')")
    init.go()
    assert init.process.wait(120) == 0
    assert init.log.stat().st_size < 1_000_000 + LAST_BYTES + 1000
    assert init.log.read_text().endswith("hello world\ndone\n")
