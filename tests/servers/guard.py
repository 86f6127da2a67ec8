"""Servers of a test end with it, however it ends: a process of its own waits for the test's end, and ends what is left of them.

A parent-death signal would not do: a server leaves its starter (`pg_ctl`), or is started by a thread that ends before it is done with.
"""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS_TO_END = 5.0  # after which a server is killed


@contextmanager
def guarded(folder: Path, *, remove: bool = False) -> Iterator[Path]:
    """Should this process die in the block, what belongs to the folder ends (see `processes_of`), and the folder is removed if so asked."""
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(folder), "remove" if remove else "keep"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as guard:
        try:
            yield folder
        finally:
            guard.kill()


@contextmanager
def guarded_folder(prefix: str) -> Iterator[Path]:
    """A new folder for a server, which goes with the block, or with this process."""
    with guarded(Path(tempfile.mkdtemp(prefix=prefix)), remove=True) as folder:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[int]:
    """The processes that name the folder on their command line or in their environment, or work in it; guards excepted."""
    name = re.compile(re.escape(os.fsencode(folder)) + rb"(?![\w.-])")
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            told = command + (entry / "environ").read_bytes() + os.fsencode((entry / "cwd").readlink())
            if name.search(told) and os.fsencode(__file__) not in command and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def end_processes_of(folder: Path) -> None:
    """An interrupt for all of them, in which each server takes its helpers along; then SIGKILL, until nobody is left."""
    deadline = time.monotonic() + SECONDS_TO_END
    number = int(signal.SIGINT)
    while left := processes_of(folder):
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        number = int(signal.SIGKILL) if time.monotonic() > deadline else 0
        time.sleep(0.2)


def main(pid: int, folder: Path, *, remove: bool) -> None:
    """Wait until the process has gone; then end what it left."""
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(pid)], [], [])
    end_processes_of(folder)
    if remove:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), remove=sys.argv[3] == "remove")
