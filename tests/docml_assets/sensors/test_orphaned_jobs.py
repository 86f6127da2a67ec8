"""Dead runs are ended and their jobs stopped; the living are left alone."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import dagster as dg
import pytest

from docml_assets.partitions import PROCESS_TAG
from docml_assets.sensors.orphaned_jobs import is_gone, orphaned_jobs_sensor, runs_without_process, sweep, was_canceled
from docml_contract.names import RunPlace
from resources.jobs.interface import Orphan
from resources.processes import start_of, this_process

STARTED, CANCELING = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING


class ListedJobs:
    """The jobs plane as the sensor sees it: orphans by the rule that the engine documents."""

    def __init__(self, *running: Orphan) -> None:
        self.running = list(running)
        self.stopped: list[str] = []

    def orphans(self, canceled: Callable[[str], bool]) -> list[Orphan]:
        return [orphan for orphan in self.running if "lapsed" in orphan.reason or canceled(orphan.holder)]

    def stop(self, orphan: Orphan) -> None:
        self.stopped.append(orphan.name)


def orphan(holder: str, reason: str) -> Orphan:
    return Orphan("EXP-1-r1-training-a-1", "EXP-1", 1, "training", "a", 1, holder, reason)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


@dg.job
def nothing() -> None:
    pass


def add_run(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, tags: dict[str, str] | None = None) -> str:
    return instance.create_run_for_job(nothing, status=status, tags=tags or {}).run_id


def test_a_killed_process_is_told_from_a_living_one() -> None:
    program = "import resources.processes as p; print(p.this_process(), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdin is not None
    process = child.stdout.readline().strip()
    assert not is_gone(process)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert is_gone(process)
    child.stdout.close()
    child.stdin.close()


def test_a_reused_process_id_is_not_the_process() -> None:
    assert is_gone(f"{socket.gethostname()} {os.getpid()} 1")
    assert not is_gone(str(this_process()))


def test_another_hosts_process_is_not_called_gone() -> None:
    assert not is_gone("elsewhere 1 2")


def test_runs_without_a_process_end(instance: dg.DagsterInstance) -> None:
    gone = {PROCESS_TAG: f"{socket.gethostname()} {os.getpid()} 1"}
    dead, canceled = add_run(instance, STARTED, gone), add_run(instance, CANCELING, gone)
    alive = add_run(instance, STARTED, {PROCESS_TAG: str(this_process())})
    unknown = add_run(instance, STARTED)
    swept = sweep(instance, ListedJobs())
    assert set(swept.ended_runs) == {dead, canceled}
    statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses[dead] is dg.DagsterRunStatus.FAILURE
    assert statuses[canceled] in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    assert statuses[alive] is statuses[unknown] is STARTED


def test_a_lapsed_lease_stops_the_job_and_fails_its_run(instance: dg.DagsterInstance) -> None:
    run = add_run(instance, STARTED)
    jobs = ListedJobs(orphan(run, "its lease lapsed 90 s ago"))
    swept = sweep(instance, jobs)
    assert jobs.stopped == ["EXP-1-r1-training-a-1"]
    assert "its lease lapsed 90 s ago" in str(swept)
    found = instance.get_run_by_id(run)
    assert found is not None
    assert found.status is dg.DagsterRunStatus.FAILURE


def test_the_job_of_a_killed_run_goes_on(instance: dg.DagsterInstance) -> None:
    gone = {PROCESS_TAG: f"{socket.gethostname()} {os.getpid()} 1"}
    run = add_run(instance, STARTED, gone)
    jobs = ListedJobs(orphan(run, "held"))
    assert sweep(instance, jobs).ended_runs == (run,)
    assert jobs.stopped == []


def test_jobs_of_the_run_that_is_about_to_be_performed_are_spared(instance: dg.DagsterInstance) -> None:
    jobs = ListedJobs(orphan("of-another-instance", "its lease lapsed"))
    assert sweep(instance, jobs, spared=RunPlace("EXP-1", 1)).stopped_jobs == ()
    assert jobs.stopped == []
    assert sweep(instance, jobs, spared=RunPlace("EXP-1", 2)).stopped_jobs


def test_a_job_of_a_canceled_run_is_stopped_and_the_run_left_as_it_ended(instance: dg.DagsterInstance) -> None:
    run = add_run(instance, dg.DagsterRunStatus.CANCELED)
    jobs = ListedJobs(orphan(run, "its Dagster run was canceled"))
    sweep(instance, jobs)
    assert jobs.stopped
    found = instance.get_run_by_id(run)
    assert found is not None
    assert found.status is dg.DagsterRunStatus.CANCELED


def test_jobs_of_working_and_of_unknown_runs_go_on(instance: dg.DagsterInstance) -> None:
    working = add_run(instance, STARTED)
    jobs = ListedJobs(orphan(working, "held"), orphan("00000000-of-another-instance", "held"))
    assert sweep(instance, jobs).stopped_jobs == ()
    assert jobs.stopped == []
    assert not was_canceled(instance)("00000000-of-another-instance")


def test_the_sensor_says_what_it_did(instance: dg.DagsterInstance) -> None:
    run = add_run(instance, STARTED)
    jobs = ListedJobs(orphan(run, "its lease lapsed"))
    with dg.build_sensor_context(instance=instance, resources={"jobs": jobs}) as context:
        skipped = orphaned_jobs_sensor(context)
    assert isinstance(skipped, dg.SkipReason)
    assert "stopped: its lease lapsed" in (skipped.skip_message or "")


def other_process() -> str:
    """The identity of a process that has ended."""
    code = "from resources.processes import start_of, this_process; print(this_process())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_this_process_lives_and_one_that_ended_is_gone() -> None:
    assert not is_gone(str(this_process()))
    assert is_gone(other_process())


def test_a_later_process_with_the_same_id_is_another_one() -> None:
    me = this_process()
    assert is_gone(str(me.model_copy(update={"start": "1"})))
    assert is_gone(f"{me.host} {me.pid} 1")  # as earlier versions wrote it


def test_of_another_machines_process_nothing_is_known() -> None:
    assert not is_gone("elsewhere 1 1")


def test_a_process_of_this_container_before_it_was_started_again_is_gone() -> None:
    first = int(start_of(1) or 0)
    elsewhere = this_process().model_copy(update={"namespace": "1"})
    assert is_gone(str(elsewhere.model_copy(update={"start": str(first - 1)}))) == (first > 0)
    assert not is_gone(str(elsewhere.model_copy(update={"start": str(first + 1)})))


def test_unfinished_runs_of_processes_that_are_gone_can_be_ended() -> None:
    gone = other_process()
    with dg.DagsterInstance.ephemeral() as instance:
        for process, status in (
            (gone, dg.DagsterRunStatus.STARTED),
            (gone, dg.DagsterRunStatus.SUCCESS),
            (str(this_process()), dg.DagsterRunStatus.STARTED),
        ):
            instance.create_run_for_job(nothing, status=status, tags={PROCESS_TAG: process})
        (dead,) = runs_without_process(instance)
        assert dead.tags[PROCESS_TAG] == gone
        instance.report_run_failed(dead, "gone")
        ended = instance.get_run_by_id(dead.run_id)
        assert ended is not None
        assert ended.status == dg.DagsterRunStatus.FAILURE
        assert runs_without_process(instance) == []
