"""Which process executes a Dagster run, and whether it still does.

Dagster's default launcher has no health check: a run whose process was killed stays STARTED for ever. So every run carries the
identity of its process as a tag.
"""

import dagster as dg

from resources.processes import Process

PROCESS_TAG = "docml/process"  # a `resources.processes.Process` as text
UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def is_gone(process: str) -> bool:
    """Whether the process of a tag ended. False where that cannot be known: it is another host's, or another container's."""
    found = Process.parse(process)
    return found.is_visible and not found.is_alive


def runs_without_process(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Unfinished runs whose process is gone."""
    unfinished = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return [run for run in unfinished if PROCESS_TAG in run.tags and is_gone(run.tags[PROCESS_TAG])]


def mark_failed(instance: dg.DagsterInstance, run: dg.DagsterRun, reason: str) -> None:
    """End a run that nobody executes any more, so that it can be executed again from its failure."""
    instance.report_run_failed(run, reason)
