"""Which process executes a Dagster run, so that a run whose process was killed can be told from one that works.

Dagster's own health checks do not cover runs of the default launcher: after kill -9 a run stays STARTED for ever.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import dagster as dg

TAG = "docml/process"  # host:pid:start time in clock ticks since boot


def mark(instance: dg.DagsterInstance, run_id: str) -> None:
    """Note on the run that this process executes it."""
    instance.add_run_tags(run_id, {TAG: this_process()})


def this_process() -> str:
    """host:pid:start of this process."""
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_start(pid)}"


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether the run's process is known to be gone. False where it runs on another host, or was never noted."""
    host, _, rest = tags.get(TAG, "").partition(":")
    pid, _, start = rest.partition(":")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    return _start(int(pid)) != start


def _start(pid: int) -> str:
    """The start time of a process, which tells it from a later one with the same id; empty if there is none.

    Where there is no /proc, a process that exists is taken for the one that was noted.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        return "running"
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
