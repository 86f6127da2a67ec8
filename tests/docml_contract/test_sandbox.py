import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from docml_contract.base import ProcessFuncBroken
from docml_contract.sandbox import Worker, worker_environment

SECRETS = {
    "PATH": os.environ["PATH"],
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "AWS_SESSION_TOKEN": "c",
    "AWS_PROFILE": "d",
    "DOCML_LABELS_URL": "postgresql://u:p@h/d",
    "WANDB_API_KEY": "e",
    "HOME": str(Path.home()),
    "PYTHONPATH": "/somewhere",
}


@contextmanager
def worker(source: str, timeout: float = 60.0, **environment: str) -> Iterator[Worker]:
    with TemporaryDirectory() as folder:
        made = Worker(Path(folder) / "home", source, {**SECRETS, **environment}, timeout)
        try:
            yield made
        finally:
            made.close()


def test_it_runs_the_function_and_keeps_its_process(tmp_path: Path) -> None:
    source = (
        "import os\nCALLS = []\n"
        "def process_func(artifact, directory):\n"
        "    CALLS.append(1)\n"
        "    print('what users print does not disturb', len(CALLS))\n"
        "    (directory / 'out').write_text(f\"{artifact['label']} {len(CALLS)} {os.getpid()}\")\n"
    )
    with worker(source) as one:
        seen = []
        for label in ("x", "ü\n"):
            assert one.run({"label": label}, tmp_path).error is None
            seen.append((tmp_path / "out").read_text())
    assert seen[0].startswith("x 1 ")
    assert seen[1].startswith("ü\n 2 ")
    assert seen[0].split()[-1] == seen[1].split()[-1] != str(os.getpid())


def test_only_allowed_variables_reach_it(tmp_path: Path) -> None:
    source = "import json, os\ndef process_func(artifact, directory): (directory / 'env').write_text(json.dumps(dict(os.environ)))\n"
    with worker(source) as one:
        assert one.run({}, tmp_path).error is None
        home = str(one._home)
    import json

    environment = json.loads((tmp_path / "env").read_text())
    assert set(environment) - {"LC_CTYPE"} == {
        "PATH", "HOME", "TMPDIR", "AWS_EC2_METADATA_DISABLED", "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS",
    }  # fmt: skip
    assert environment["HOME"] == home != SECRETS["HOME"]
    assert not Path(home).exists()
    assert "AWS_ACCESS_KEY_ID" not in worker_environment(SECRETS, tmp_path)


def test_an_error_comes_with_the_users_traceback_and_the_process_lives_on(tmp_path: Path) -> None:
    source = (
        "def inner(artifact):\n    return 1 / artifact['n']\n"
        "def process_func(artifact, directory):\n    inner(artifact)\n"
    )
    with worker(source) as one:
        outcome = one.run({"n": 0}, tmp_path)
        assert outcome.error == "ZeroDivisionError: division by zero"
        assert 'user_defined_funcs.py", line 2, in inner' in outcome.traceback
        assert "worker.py" not in outcome.traceback
        assert one.run({"n": 1}, tmp_path).error is None


@pytest.mark.parametrize(
    ("death", "how"),
    [
        ("os._exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), 9)", "signal SIGKILL"),
        ("ctypes.string_at(0)", "signal SIGSEGV"),
    ],
)
def test_a_death_costs_one_artifact(tmp_path: Path, death: str, how: str) -> None:
    source = (
        "import ctypes, os, sys\ndef process_func(artifact, directory):\n"
        f"    if artifact['dies']:\n        print('last words', file=sys.stderr)\n        {death}\n"
    )
    with worker(source) as one:
        outcome = one.run({"dies": True}, tmp_path)
        assert outcome.error == f"the worker process died ({how}) in process_func"
        assert "last words" in outcome.traceback
        assert one.run({"dies": False}, tmp_path).error is None


@pytest.mark.parametrize("leave", ["", "os.setsid()"], ids=["beside it", "in a session of its own"])
def test_a_death_is_noticed_at_once_whoever_still_holds_the_channel(tmp_path: Path, leave: str) -> None:
    source = (
        "import os, time\ndef process_func(artifact, directory):\n"
        "    if artifact['dies']:\n"
        f"        if os.fork() == 0:\n            {leave or 'pass'}\n"
        "            (directory / 'child').write_text(str(os.getpid()))\n"
        "            time.sleep(600)\n"
        "        while not (directory / 'child').exists(): time.sleep(.01)\n"
        "        os._exit(3)\n"
    )
    with worker(source) as one:  # which waits 60 seconds for a function
        outcome = one.run({"dies": True}, tmp_path)
        assert outcome.error == "the worker process died (exit code 3) in process_func"
        _wait_until_gone(int((tmp_path / "child").read_text()))
        assert one.run({"dies": False}, tmp_path).error is None


def test_an_error_with_half_a_character_can_be_written_down(tmp_path: Path) -> None:
    source = "def process_func(artifact, directory):\n    raise ValueError('cannot read \\udcff.pdf')\n"
    with worker(source) as one:
        outcome = one.run({}, tmp_path)
    assert outcome.error == "ValueError: cannot read \\udcff.pdf"
    assert "\\udcff.pdf" in outcome.traceback
    assert (outcome.error + outcome.traceback).encode()


def test_sys_exit_is_an_error_like_any_other(tmp_path: Path) -> None:
    with worker("import sys\ndef process_func(artifact, directory): sys.exit('enough')\n") as one:
        assert one.run({}, tmp_path).error == "SystemExit: enough"


def test_a_hanging_function_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    source = (
        "import os, pathlib, subprocess, sys, time\n"
        "SLEEP = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "def process_func(artifact, directory):\n"
        "    if artifact['hangs']:\n"
        "        child = subprocess.Popen(SLEEP)\n"
        "        apart = subprocess.Popen(SLEEP, start_new_session=True)\n"
        "        if (between := os.fork()) == 0:\n"
        "            orphan = subprocess.Popen(SLEEP, start_new_session=True)\n"
        "            (directory / 'orphan').write_text(str(orphan.pid))\n"
        "            os._exit(0)\n"
        "        os.waitpid(between, 0)\n"
        "        (directory / 'child').write_text(str(child.pid))\n"
        "        (directory / 'apart').write_text(str(apart.pid))\n"
        "        time.sleep(600)\n"
    )
    with worker(source, timeout=3.0) as one:
        outcome = one.run({"hangs": True}, tmp_path)
        assert outcome.error == "process_func did not end within 3 seconds and was stopped"
        for name in ("child", "apart", "orphan"):
            _wait_until_gone(int((tmp_path / name).read_text()))
        assert one.run({"hangs": False}, tmp_path).error is None


def test_it_runs_beside_a_thousand_open_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    with ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while held.enter_context(Path(os.devnull).open("rb")).fileno() <= 1024:
            pass
        with worker("def process_func(artifact, directory): pass\n") as one:
            assert one.run({}, tmp_path).error is None


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} lives on")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_module_anywhere\ndef process_func(a, d): ...\n", "no_such_module_anywhere"),
        ("def process_func(a, d:\n", "SyntaxError"),
        ("import os\nos._exit(1)\n", "the worker died"),
        ("import sys\nsys.exit(2)\n", "SystemExit"),
        ("x = 1\n", "process_func"),
    ],
)
def test_a_module_that_does_not_load(tmp_path: Path, source: str, said: str) -> None:
    with worker(source) as one, pytest.raises(ProcessFuncBroken, match=said) as caught:
        one.run({}, tmp_path)
    assert sys.executable in str(caught.value)


def test_an_interpreter_that_is_none(tmp_path: Path) -> None:
    said = "DOCML_WORKER_PYTHON: '/no/python' cannot be started"
    with worker("x", DOCML_WORKER_PYTHON="/no/python") as one, pytest.raises(ProcessFuncBroken, match=said):
        one.run({}, tmp_path)


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    import subprocess

    script = (
        "import sys, pathlib, os\n"
        "from docml_contract.sandbox import Worker\n"
        "source = 'import os, time\\ndef process_func(a, d):\\n    (d / \"pid\").write_text(str(os.getpid()))\\n    time.sleep(600)\\n'\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "Worker(folder / 'home', source, dict(os.environ)).run({}, folder)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "pid").exists():
        time.sleep(0.05)
    time.sleep(0.1)
    parent.kill()
    parent.wait()
    _wait_until_gone(int((tmp_path / "pid").read_text()))


FORGERY = """
import os
def fds():
    return [int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
def shout(data):
    for fd in fds():
        try: os.write(fd, data)
        except OSError: pass
def process_func(artifact, directory):
    if artifact["how"] == "ahead": shout(b'{"token": ""}\\n' * 3)
    if artifact["how"] == "flood":
        while True: shout(b"x" * 65536)
    if artifact["how"] == "nonsense": shout(b"[" * 5000 + b"\\n")
    if artifact["how"] == "list": shout(b"[1]\\n")
    if artifact["how"] == "fails": raise ValueError("as it should")
"""


@pytest.mark.parametrize("how", ["ahead", "flood", "nonsense", "list"])
def test_replies_are_neither_forged_nor_endless(tmp_path: Path, how: str) -> None:
    with worker(FORGERY) as one:
        outcome = one.run({"how": how}, tmp_path)
        assert outcome.error is not None
        assert outcome.error.startswith("process_func wrote into docml's own channel")
        assert one.run({"how": "fails"}, tmp_path).error == "ValueError: as it should", "what was written ahead is gone"


def test_an_error_that_cannot_be_shown_is_one_still(tmp_path: Path) -> None:
    source = (
        "class Odd(Exception):\n    def __str__(self): raise RuntimeError('no')\n"
        "def process_func(artifact, directory): raise Odd\n"
    )
    with worker(source) as one:
        assert one.run({}, tmp_path).error == "Odd"


def test_what_is_shown_of_a_dead_worker_is_what_it_printed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("CANARY")
    source = (
        "import os, pathlib\ndef process_func(artifact, directory):\n"
        "    home = pathlib.Path.home()\n"
        "    for name in {'output', *(path.name for path in home.iterdir() if path.is_file())}:\n"
        "        (home / name).unlink(missing_ok=True)\n"
        "        (home / name).symlink_to(artifact['secret'])\n"
        "    print('last words', flush=True)\n    os._exit(1)\n"
    )
    with worker(source) as one:
        outcome = one.run({"secret": str(tmp_path / "secret")}, tmp_path)
    assert outcome.traceback == "last words\n"
    assert (tmp_path / "secret").read_text() == "CANARY"
