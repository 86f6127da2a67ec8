"""Processes told apart beyond their number, which the system uses again: by start time and boot."""

import contextlib
import os
import signal
import socket
import subprocess
from functools import cache
from pathlib import Path

from pydantic import Field

from docml_contract.base import Document

_STAT_STATE = 0  # fields of /proc/<pid>/stat after the parenthesised name
_STAT_GROUP = 2
_STAT_START = 19


class Process(Document):
    """One process on one machine since its last start."""

    host: str
    boot: str = Field(description="the machine's boot; empty where the system names none")
    pid: int
    start: str = Field(description="when the process started, as the system tells it")

    @property
    def here(self) -> bool:
        """Whether it was started on this machine (perhaps before a restart)."""
        return self.host == socket.gethostname()

    def alive(self) -> bool:
        """Whether it still runs; only asked where `here`."""
        return self.boot == boot() and start_of(self.pid) == self.start


def this_process() -> Process:
    """The calling process."""
    pid = os.getpid()
    return Process(host=socket.gethostname(), boot=boot(), pid=pid, start=start_of(pid) or "")


@cache
def boot() -> str:
    """The machine's boot id."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def start_of(pid: int) -> str | None:
    """When a process started; None if there is none, or only its remains."""
    if Path("/proc/self/stat").exists():
        fields = _stat(pid)
        return None if fields is None or fields[_STAT_STATE] in "ZX" else fields[_STAT_START]
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, start = found.stdout.strip().partition(" ")
    return start.strip() if state and not state.startswith("Z") else None


def kill_group(group: int, marker: str) -> None:
    """SIGKILL to the processes of a group whose environment holds `marker`: the group's number may belong to others by now.

    Where environments cannot be read (no /proc), nothing is killed.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields is None or fields[_STAT_GROUP] != str(group):
            continue
        with contextlib.suppress(OSError):
            if marker.encode() in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
