"""Containers that are forks begin, run and end as fresh ones do, and nothing of their server outlives its owner."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resources.jobs.backend import Job
from resources.jobs.local import fork_server
from resources.jobs.local.container import BASE_VARIABLE, Container, trainer_environment
from resources.jobs.local.fork_server import ForkServer
from resources.processes import kill_marked, start_of
from tests.contracts.jobs_contract import training
from tests.resources.jobs.local.test_container_init import wait_for

# What a program can see of how it was started.
LOOK = """
import json, os, random, signal, socket, sys
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines())
facts = {
    "arguments": sys.argv, "path": sys.path[0], "name": __name__, "folder": os.getcwd(), "environment": dict(os.environ),
    "command line": open("/proc/self/cmdline").read().rstrip("\\0").split("\\0"), "session": os.getsid(0) == os.getpid(),
    "status": {name: value for name, value in status.items() if name.startswith(("Cap", "Sig", "Shd", "NoNew", "Umask", "Thr", "Uid"))},
    "files": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
    "signals": [str(signal.getsignal(number)) for number in (1, 2, 13, 15, 17)], "streams": [sys.stdout.isatty(), sys.stdout.encoding],
    "interfaces": socket.if_nameindex(), "marked": b"SAGEMAKER_BASE_DIR" in open("/proc/self/environ", "rb").read(),
    "users": open("/proc/self/uid_map").read().split(),
}
print(json.dumps(facts, sort_keys=True), flush=True)
print(random.random(), flush=True)
"""
SLEEP = "import time; print('begun', flush=True); time.sleep(600)"


def environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}


def server_of(folder: Path, *command: str) -> ForkServer:
    base = folder / "libraries"
    server = ForkServer((sys.executable, *command), trainer_environment(environment(), training(), base), base)
    wait_for(lambda: not server.is_starting)
    return server


class Bench:
    """Containers of one program, and the server of which they are forks."""

    def __init__(self, folder: Path, code: str) -> None:
        self.folder = folder
        self.program = folder / "program.py"
        self.program.write_text(code)
        self.server = server_of(folder, str(self.program))
        self.containers: list[Container] = []

    def start(self, name: str, *, forked: bool = True) -> Container:
        base = self.folder / name
        (base / "home").mkdir(parents=True)
        container = Container(
            Job.plan(training(), 1, "file:///store"), base, self.folder / f"{name}.log", ["algo-1"], 0
        )
        self.containers.append(container)
        container.start((sys.executable, str(self.program)), environment(), self.server if forked else None)
        return container

    def run(self, name: str, *, forked: bool = True) -> list[str]:
        container = self.start(name, forked=forked)
        container.go()
        wait_for(lambda: container.exit_code is not None)
        container.kill()
        return container.log.read_text().replace(str(container.base), "BASE").splitlines()

    def close(self) -> None:
        for container in self.containers:
            container.kill()
        self.server.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Bench]]:
    made: list[Bench] = []

    def bench(code: str) -> Bench:
        made.append(Bench(tmp_path, code))
        return made[-1]

    yield bench
    for each in made:
        each.close()


def test_a_fork_finds_what_a_fresh_interpreter_finds(make: Callable[[str], Bench]) -> None:
    bench = make(LOOK)
    (line, _), *forked = (
        [re.sub(r"http://127.0.0.1:\d+", "PROXY", line) for line in bench.run(name, forked=forked)]
        for name, forked in (("a", False), ("b", True), ("c", True))
    )
    assert bench.server.problem is None
    fresh = json.loads(line)
    for each, _ in forked:
        found = json.loads(each)
        assert " ".join(fresh["command line"]).startswith(" ".join(found.pop("command line")))
        assert found == {name: value for name, value in fresh.items() if name != "command line"}
    (_, first), (_, second) = forked
    assert first != second  # random numbers


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise SystemExit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import atexit; atexit.register(print, 'bye')", 0),
    ],
)
def test_it_ends_as_its_command_ends(make: Callable[[str], Bench], code: str, expected: int) -> None:
    bench = make(f"print('hello')\n{code}")
    lines = bench.run("a")
    assert bench.server.problem is None
    assert bench.containers[0].exit_code == expected
    assert lines == ["hello", *(["bye"] if expected == 0 else [])]


def test_what_it_raises_is_in_its_log_and_it_fails(make: Callable[[str], Bench]) -> None:
    bench = make("raise ValueError('of the program')")
    assert bench.run("a")[-1] == "ValueError: of the program"
    assert bench.containers[0].exit_code == 1


def test_nothing_runs_before_it_is_told_to_and_sigterm_goes_to_the_command(make: Callable[[str], Bench]) -> None:
    bench = make("import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(143))\n" + SLEEP)
    container = bench.start("a")
    time.sleep(0.2)
    assert not container.log.exists()
    container.go()
    wait_for(lambda: container.log.exists() and container.log.read_text())
    container.ask_to_stop()
    wait_for(lambda: container.exit_code is not None)
    assert container.exit_code == 143


def test_its_forks_go_on_when_the_server_is_killed_and_the_next_container_is_fresh(
    make: Callable[[str], Bench],
) -> None:
    bench = make(SLEEP)
    one = bench.start("a")
    one.go()
    wait_for(lambda: one.log.exists() and one.log.read_text())
    os.kill(bench.server.pid, signal.SIGKILL)
    two = bench.start("b")
    two.go()
    wait_for(lambda: two.log.exists() and two.log.read_text())
    assert [len(bench.server.tell()), len(bench.server.tell())] == [1, 0]
    assert one.exit_code is None
    one.ask_to_stop()
    wait_for(lambda: one.exit_code is not None)
    assert one.exit_code == -signal.SIGTERM


def test_a_stopped_server_is_given_up(make: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "FORK_SECONDS", 0.2)
    bench = make("print('hello')")
    os.kill(bench.server.pid, signal.SIGSTOP)
    assert bench.run("a") == ["hello"]
    assert "does not answer" in (bench.server.problem or "")
    assert start_of(bench.server.pid) is None


# Starts a container, prints the numbers of all processes, and waits to be killed.
OWNER = """
import sys, time
from pathlib import Path
from tests.resources.jobs.local.test_fork_server import SLEEP, Bench, wait_for
bench = Bench(Path(sys.argv[1]), "import os; print(os.getpid(), flush=True)\\n" + SLEEP)
container = bench.start("a")
container.go()
wait_for(lambda: container.log.exists() and "begun" in container.log.read_text())
print(bench.server.pid, container.pid, container.log.read_text().split()[0], flush=True)
time.sleep(600)
"""


def test_nothing_outlives_an_owner_that_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[4]
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) == 3
        assert all(start_of(pid) for pid in pids)
        owner.kill()
        owner.wait()
    wait_for(lambda: not any(start_of(pid) for pid in pids))


def test_what_a_killed_first_process_leaves_is_found_by_its_marks(make: Callable[[str], Bench]) -> None:
    bench = make("import os\nif os.fork(): os.wait()\nelse: os.setsid(); print(os.getpid(), flush=True)\n" + SLEEP)
    container = bench.start("a")
    container.go()
    wait_for(lambda: container.log.exists() and "begun" in container.log.read_text())
    left = int(container.log.read_text().split()[0])
    os.kill(container.pid, signal.SIGKILL)
    wait_for(lambda: container.exit_code is not None)
    assert start_of(left)
    kill_marked(f"{BASE_VARIABLE}={container.base}")
    wait_for(lambda: start_of(left) is None)


@pytest.mark.parametrize(
    ("library", "problem"),
    [
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
            "2 threads run",
        ),
        ("kept = open('/etc/hostname')", "have opened files"),
        ("raise ImportError('lacks something')", "ImportError: lacks something"),
        ("import os; os._exit(0)", "it died"),
    ],
)
def test_where_a_fork_is_unsafe_containers_are_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, problem: str
) -> None:
    (tmp_path / "some_library.py").write_text(library)
    monkeypatch.setattr(fork_server, "LIBRARIES", ("some_library",))
    base = tmp_path / "libraries"
    server = ForkServer((sys.executable, *fork_server.TRAINER), environment() | {"PYTHONPATH": str(tmp_path)}, base)
    wait_for(lambda: not server.is_starting)
    assert server.fork({}, None) is None
    assert problem in "".join(server.tell())
    assert start_of(server.pid) is None


def test_a_librarys_constants_follow_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_library.py").write_text(
        "import os, pathlib\nTOKEN = os.environ['HOME'] + '/token'\nHOME = pathlib.Path.home()\n"
    )
    (tmp_path / "program.py").write_text("import some_library; print(some_library.TOKEN, some_library.HOME)")
    monkeypatch.setattr(fork_server, "LIBRARIES", ("some_library",))
    base, log = tmp_path / "libraries", tmp_path / "log"
    variables = {**environment(), "PYTHONPATH": str(tmp_path), "HOME": str(base)}
    server = ForkServer((sys.executable, *fork_server.TRAINER), variables, base)
    wait_for(lambda: not server.is_starting)
    request = {
        "init": (str(log), 1000, 1000),
        "command": [str(tmp_path / "program.py")],
        "environment": variables | {"HOME": "/another"},
        "folder": str(tmp_path),
        "network": "none",
        "hidden": [],
    }
    process = server.fork(request, None)
    assert process is not None
    process.stdin.write(b"g")
    assert process.wait(60) == 0
    process.stdin.close()
    server.close()
    assert log.read_text() == "/another/token /another\n"
