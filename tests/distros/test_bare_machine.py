import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distros.bare_machine import ROOT, variables_and_paths

LISTED = """\
:env:.cert='{folder}/ca.pem'
:env:.require-virtualenv='1'
global.cert='/of/the/file.pem'
global.extra-index-url='file://{folder}/index/simple\\nhttps://packages.example/simple'
install.find-links='{folder}/wheels /not/there'
user.cache-dir='{folder}'
"""


def test_pip_on_a_bare_machine_reaches_packages_as_this_one_does(tmp_path: Path) -> None:
    for name in ("index/simple", "wheels"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ca.pem").touch()
    variables, paths = variables_and_paths(LISTED.format(folder=tmp_path))
    assert variables == {
        "PIP_CERT": f"/run/host{tmp_path}/ca.pem",
        "PIP_EXTRA_INDEX_URL": f"file:///run/host{tmp_path}/index/simple https://packages.example/simple",
        "PIP_FIND_LINKS": f"/run/host{tmp_path}/wheels /not/there",
    }
    assert sorted(paths) == [tmp_path / "ca.pem", tmp_path / "index", tmp_path / "wheels"]


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def python(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", f"from tests.distros.bare_machine import *\n{code}"], cwd=ROOT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_machine_s_folder_goes_with_the_process_that_made_it(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "machine"
    code = f"""
import time
with removed_at_the_end(Path({str(folder)!r})):
    Path({str(folder)!r}, "etc").mkdir(parents=True)
    time.sleep(600)"""
    with python(code) as process:
        wait_until((folder / "etc").exists)
        process.send_signal(number)
    wait_until(lambda: not folder.exists())


@pytest.mark.distros
def test_what_runs_on_a_machine_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    script = f"mount -t tmpfs tmpfs /mnt; exec 9>{lock}; flock 9; echo held >&9; setsid sleep 600"
    with python(f"subprocess.run([*NAMESPACES, 'sh', '-c', {script!r}])") as process:
        wait_until(lambda: lock.stat().st_size > 0)
        assert not is_free(lock)
        process.kill()
    wait_until(lambda: is_free(lock))


def is_free(lock: Path) -> bool:
    """Whether every process that held the lock is gone."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
