"""Processes told apart beyond their number, which the system uses again: by host, boot, PID namespace and start time."""

import contextlib
import os
import signal
import socket
import subprocess
from functools import cache
from pathlib import Path

from pydantic import Field

from docml_contract.base import Document

# Fields of /proc/<pid>/stat after the parenthesised name.
_STATE, _GROUP, _START = 0, 2, 19


class Process(Document):
    """One process on one machine since its last start."""

    host: str
    boot: str = Field("", description="the machine's boot; empty where the system names none")
    namespace: str = Field("", description="the PID namespace (a container has its own); empty where there are none")
    pid: int
    start: str = Field(description="when the process started, as the system tells it")

    @property
    def is_visible(self) -> bool:
        """Whether it was started where this process can see it: on this host, in this PID namespace (perhaps before a restart)."""
        return self.host == socket.gethostname() and self.namespace in ("", pid_namespace())

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; only asked where `is_visible`."""
        return self.boot in ("", boot()) and start_of(self.pid) == self.start

    def __str__(self) -> str:
        return f"{self.host} {self.pid} {self.start} {self.boot or '-'} {self.namespace or '-'}"

    @classmethod
    def parse(cls, text: str) -> "Process":
        """The inverse of `str`; also takes the first three words alone."""
        host, pid, start, boot, namespace = (*text.split(" "), "-", "-")[:5]
        return cls(host=host, pid=int(pid), start=start, boot=boot.strip("-"), namespace=namespace.strip("-"))


def this_process() -> Process:
    """The calling process."""
    pid = os.getpid()
    return Process(
        host=socket.gethostname(), boot=boot(), namespace=pid_namespace(), pid=pid, start=start_of(pid) or "-"
    )


@cache
def boot() -> str:
    """The machine's boot id; empty where the system has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def pid_namespace() -> str:
    """The number of this process's PID namespace; empty where the system has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    return ""


def start_of(pid: int) -> str | None:
    """When a process started; None if there is none, or only its remains."""
    if Path("/proc/self/stat").exists():
        fields = _stat(pid)
        return None if fields is None or fields[_STATE] in "ZX" else fields[_START]
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, start = found.stdout.strip().partition(" ")
    return "-".join(start.split()) if state and not state.startswith("Z") else None


def kill_group(group: int, marker: str) -> None:
    """SIGKILL to the processes of a group whose environment holds `marker`: the group's number may belong to others by now.

    Where environments cannot be read (no /proc), nothing is killed.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields is None or fields[_GROUP] != str(group):
            continue
        with contextlib.suppress(OSError):
            if marker.encode() in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
