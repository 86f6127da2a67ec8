"""Stops jobs that nobody waits for, and ends runs that nobody executes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dagster as dg

from docml_assets.partitions import PROCESS_TAG
from docml_contract.names import RunPlace
from resources.jobs.interface import Jobs, Orphan
from resources.processes import Process

UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep did."""

    ended_runs: tuple[str, ...]
    stopped_jobs: tuple[Orphan, ...]

    def __str__(self) -> str:
        runs = [f"run {run} marked failed: its process is gone" for run in self.ended_runs]
        jobs = [f"job {orphan.name} stopped: {orphan.reason}" for orphan in self.stopped_jobs]
        return "; ".join([*runs, *jobs]) or "no job without a waiting run, no run without a process"


@dg.sensor(
    name="orphaned_jobs_sensor",
    description="Stops jobs whose run was canceled or whose lease lapsed 15 minutes ago, and marks runs failed whose process was killed, so that they can "
    "be re-executed. Starts nothing.",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=60,
)
def orphaned_jobs_sensor(context: dg.SensorEvaluationContext, jobs: dg.ResourceParam[Any]) -> dg.SkipReason:
    swept = sweep(context.instance, jobs)
    if swept.ended_runs or swept.stopped_jobs:
        context.log.warning(str(swept))
    return dg.SkipReason(str(swept))


def sweep(instance: dg.DagsterInstance, jobs: Jobs, *, spared: RunPlace | None = None) -> SweepResult:
    """End runs whose process is gone, then stop jobs for which nobody comes back; then end the runs that had waited for those.

    spared: the run that the caller is about to perform, which attaches to its jobs.
    """
    ended = []
    for run in runs_without_process(instance):
        instance.report_run_failed(
            run, "The process that executed this run is gone (killed, or its machine restarted)."
        )
        ended.append(run.run_id)
    orphans = [
        orphan for orphan in jobs.orphans(was_canceled(instance)) if RunPlace(orphan.experiment, orphan.run) != spared
    ]
    for orphan in orphans:
        jobs.stop(orphan)
        holder = instance.get_run_by_id(orphan.holder)
        if holder is not None and holder.status == dg.DagsterRunStatus.STARTED:
            instance.report_run_failed(
                holder,
                f"Nobody waits for its job {orphan.name} any more ({orphan.reason}); the job was stopped.",
            )
            ended.append(holder.run_id)
    return SweepResult(tuple(ended), tuple(orphans))


def runs_without_process(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Unfinished runs whose process is gone: Dagster's default launcher has no health check, they would stay STARTED for ever."""
    unfinished = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return [run for run in unfinished if PROCESS_TAG in run.tags and is_gone(run.tags[PROCESS_TAG])]


def is_gone(process: str) -> bool:
    """Whether the process of a tag ended. False where that cannot be known: it is another host's, or another container's."""
    found = Process.parse(process)
    # An older container of the same name that goes on keeps its jobs all the same: it renews their leases.
    ended_with_its_machine = found.is_of_another_boot or found.is_of_an_earlier_container
    return ended_with_its_machine or (found.is_visible and not found.is_alive)


def was_canceled(instance: dg.DagsterInstance) -> Callable[[str], bool]:
    """Whether a Dagster run was canceled. A run that this instance does not know may belong to another one: its lease decides."""

    def canceled(run_id: str) -> bool:
        run = instance.get_run_by_id(run_id)
        return run is not None and run.status == dg.DagsterRunStatus.CANCELED

    return canceled
