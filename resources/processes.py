"""Processes told apart beyond their number, which the system uses again: by host, boot, PID namespace and start time."""

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from pydantic import Field

from docml_contract.base import Document

# Fields of /proc/<pid>/stat after the parenthesised name.
_STATE, _PARENT, _TIMES, _START = 0, 1, slice(11, 15), 19

# Detaches a process, which holds the lock on its folder from its first moment; prints its number.
_LAUNCH = """
import fcntl, os, subprocess, sys
lock = os.open(sys.argv[1] + "/lock", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
print(subprocess.Popen(sys.argv[2:], stdout=2, pass_fds=[lock], start_new_session=True).pid)
"""


class Process(Document):
    """One process on one machine since its last start."""

    host: str
    boot: str = Field("", description="the machine's boot; empty where the system names none")
    namespace: str = Field("", description="the PID namespace (a container has its own); empty where there are none")
    pid: int
    start: str = Field(description="when the process started, as the system tells it")

    @property
    def is_visible(self) -> bool:
        """Whether this process can see it: same host, same boot, same PID namespace."""
        return self._has_our_place and self.boot in ("", boot())

    @property
    def is_of_another_boot(self) -> bool:
        """Whether it was started here before a restart, or on another machine that has the same name."""
        return self._has_our_place and not self.is_visible

    @property
    def is_of_an_earlier_container(self) -> bool:
        """Whether it ran in a container of this name that has been started again since: our first process is younger than it.

        An older container that goes on under the same name looks so, too.
        """
        same_machine = self.host == socket.gethostname() and self.boot == boot()
        if not same_machine or self.namespace in ("", pid_namespace()):
            return False
        ours = start_of(1)
        return ours is not None and ours.isdigit() and self.start.isdigit() and int(self.start) < int(ours)

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; only asked where `is_visible`."""
        return self.boot in ("", boot()) and start_of(self.pid) == self.start

    @property
    def _has_our_place(self) -> bool:
        return self.host == socket.gethostname() and self.namespace in ("", pid_namespace())

    def __str__(self) -> str:
        return f"{self.host} {self.pid} {self.start} {self.boot or '-'} {self.namespace or '-'}"

    @classmethod
    def parse(cls, text: str) -> "Process":
        """The inverse of `str`; also takes the first three words alone."""
        host, pid, start, boot, namespace = (*text.split(" "), "-", "-")[:5]
        return cls(host=host, pid=int(pid), start=start, boot=boot.strip("-"), namespace=namespace.strip("-"))


def this_process() -> Process:
    """The calling process."""
    return process_here(os.getpid())


def process_here(pid: int) -> Process:
    """The identity of a process that this one can see; one that has ended already is not alive."""
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


def place_here() -> str:
    """Hash of where process numbers mean what they mean here."""
    return hashlib.sha256("\0".join((socket.gethostname(), boot(), pid_namespace())).encode()).hexdigest()[:12]


def booted_at() -> float:
    """When the machine was started, seconds since the epoch; 0 where the system does not tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if clock is None else time.time() - time.clock_gettime(clock)


def start_of(pid: int) -> str | None:
    """When a process started; None if there is none, or only its remains."""
    if Path("/proc/self/stat").exists():
        fields = _stat(pid)
        return None if fields is None or fields[_STATE] in "ZX" else fields[_START]
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, start = found.stdout.strip().partition(" ")
    return "-".join(start.split()) if state and not state.startswith("Z") else None


def cpu_ticks(pid: int) -> int:
    """Processor time of a process's descendants, ended ones included, in the system's ticks; 0 where it does not show them."""
    times: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields is not None:
            times[int(entry.name)] = int(fields[_PARENT]), sum(int(field) for field in fields[_TIMES])
    total, level = 0, {pid}
    while level:
        level = {child for child, (parent, _) in times.items() if parent in level}
        total += sum(times[child][1] for child in level)
    return total


def kill_marked(variable: str) -> None:
    """SIGKILL to every process that was started with this environment variable (NAME=/path), or with a path below it.

    Where environments cannot be read (no /proc, or another user's), nothing is killed.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            if any(each == variable.encode() or each.startswith(f"{variable}/".encode()) for each in variables):
                os.kill(int(entry.name), signal.SIGKILL)


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def start_detached(command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> int | None:
    """Start a process that outlives this one, in `folder`, whose lock it holds; its number, or None: `log` says why it did not start."""
    with log.open("wb") as stream:
        launched = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LAUNCH, str(folder), *command],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            check=False,
        )
    return None if launched.returncode else int(launched.stdout)
