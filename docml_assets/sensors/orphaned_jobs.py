"""Stops jobs that nobody waits for, and ends runs whose process is gone."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from docml_assets.run_processes import is_dead
from resources.jobs.interface import Orphan

UNDER_WAY = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@dg.sensor(
    name="orphaned_jobs_sensor",
    description=(
        "Stops jobs of ours whose lease lapsed or whose Dagster run has ended, so that none bills on, and marks runs whose "
        "process was killed as failed. Materialize such a run again: it attaches, takes the result, or resumes."
    ),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=60,
)
def orphaned_jobs_sensor(context: dg.SensorEvaluationContext, deployment: dg.ResourceParam[Any]) -> dg.SkipReason:
    """The thin Dagster side of `fail_dead_runs` and `stop_orphans`."""
    said = fail_dead_runs(context.instance) + stop_orphans(context.instance, deployment.jobs)
    for sentence in said:
        context.log.info(sentence)
    return dg.SkipReason(" ".join(said) or "No job without somebody who waits for it.")


def fail_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs failed whose process is gone; returns what was done, as sentences."""
    said = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNDER_WAY)):
        if is_dead(run.tags):
            said.append(f"Run {run.run_id[:8]} is marked as failed: its process is gone.")
            _fail(instance, run, "The process that executed this run is gone (killed, or its machine restarted).")
    return said


def stop_orphans(instance: dg.DagsterInstance, jobs: Any) -> list[str]:
    """Stop every orphan and mark the run that still seems to hold it as failed; returns what was done, as sentences."""
    said = []
    for orphan in jobs.orphans(holder_ended(instance)):
        said.append(f"Job {orphan.name} was stopped: {orphan.reason}")
        jobs.stop(orphan)
        run = instance.get_run_by_id(orphan.holder)
        if run is not None and run.status in UNDER_WAY:
            _fail(instance, run, _why(orphan))
    return said


def holder_ended(instance: dg.DagsterInstance) -> Callable[[str], bool]:
    """Whether the Dagster run that holds a lease has ended. A run that this instance does not know has not ended for us."""

    def ended(run_id: str) -> bool:
        run = instance.get_run_by_id(run_id)
        return run is not None and run.is_finished

    return ended


def _why(orphan: Orphan) -> str:
    return (
        f"Nobody waited for job {orphan.name} any more ({orphan.reason}), so the process that executed this run is gone. "
        "The job was stopped; materialize again to resume."
    )


def _fail(instance: dg.DagsterInstance, run: dg.DagsterRun, why: str) -> None:
    if run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, message=why)
    else:
        instance.report_run_failed(run, message=why)
