"""Which process executes a Dagster run, and whether it still does.

Dagster's default launcher has no health check: a run whose process was killed stays STARTED for ever. So every run carries host,
process id and start time of its process.
"""

import os
import socket
import subprocess
from pathlib import Path

import dagster as dg

PROCESS_TAG = "docml/process"
UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def this_process() -> str:
    """`host pid start-time` of this process."""
    return f"{socket.gethostname()} {os.getpid()} {_started_at(os.getpid())}"


def is_gone(process: str) -> bool:
    """Whether the process of a `this_process` text ended. False where that cannot be known: it is another host's."""
    host, pid, started_at = process.split(" ", 2)
    return host == socket.gethostname() and _started_at(int(pid)) != started_at


def _started_at(pid: int) -> str:
    """When a process started; empty if there is none. Tells a process from a later one with its id."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else fields[19]
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return "-".join(answer.stdout.split())


def runs_without_process(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Unfinished runs whose process is gone."""
    unfinished = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return [run for run in unfinished if PROCESS_TAG in run.tags and is_gone(run.tags[PROCESS_TAG])]


def mark_failed(instance: dg.DagsterInstance, run: dg.DagsterRun, reason: str) -> None:
    """End a run that nobody executes any more, so that it can be executed again from its failure."""
    instance.report_run_failed(run, reason)
