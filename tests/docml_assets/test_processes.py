"""Which process executes a run, and whether it still does."""

import subprocess
import sys

import dagster as dg

from docml_assets.processes import PROCESS_TAG, is_gone, mark_failed, runs_without_process
from resources.processes import this_process


def other_process() -> str:
    """The identity of a process that has ended."""
    code = "from resources.processes import this_process; print(this_process())"
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
    assert not is_gone(str(this_process().model_copy(update={"namespace": "1", "start": "1"})))


def test_unfinished_runs_of_processes_that_are_gone_can_be_ended() -> None:
    gone = other_process()

    @dg.job
    def nothing() -> None:
        pass

    with dg.DagsterInstance.ephemeral() as instance:
        for process, status in (
            (gone, dg.DagsterRunStatus.STARTED),
            (gone, dg.DagsterRunStatus.SUCCESS),
            (str(this_process()), dg.DagsterRunStatus.STARTED),
        ):
            instance.create_run_for_job(nothing, status=status, tags={PROCESS_TAG: process})
        (dead,) = runs_without_process(instance)
        assert dead.tags[PROCESS_TAG] == gone
        mark_failed(instance, dead, "gone")
        ended = instance.get_run_by_id(dead.run_id)
        assert ended is not None
        assert ended.status == dg.DagsterRunStatus.FAILURE
        assert runs_without_process(instance) == []
