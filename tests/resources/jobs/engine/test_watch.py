"""What is tried again, how often, and for how long; and how a lease is kept meanwhile."""

import random
import threading
from pathlib import Path

import pytest

from resources.jobs.backend import Job, JobState
from resources.jobs.engine.records import JobContext, Lease
from resources.jobs.engine.watch import BUSY_SECONDS, CAPACITY_SECONDS, MAX_ATTEMPTS, Budget, JobWatch
from resources.jobs.interface import JobUnreachable
from resources.jobs.local.backend import LocalBackend
from resources.store import Store
from tests.contracts.jobs_contract import RecordingListener, training


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("cause", ["work", "time", "stopped"])
def test_what_would_fail_again_is_not_tried_again(cause: str) -> None:
    assert Budget(Clock(), random.Random(1)).after(JobState("Failed", cause=cause)) is None  # type: ignore[arg-type]


def test_a_lost_job_is_tried_again_a_few_times() -> None:
    budget = Budget(Clock(), random.Random(1))
    waits = []
    for _ in range(MAX_ATTEMPTS + 1):
        budget.attempts += 1
        waits.append(budget.after(JobState("Failed", cause="lost")))
    assert [wait is not None for wait in waits] == [True, True, False, False]


def test_capacity_is_waited_for_until_the_budget_is_spent() -> None:
    clock = Clock()
    budget = Budget(clock, random.Random(1))
    tries = 0
    while (wait := budget.capacity()) is not None:
        assert 20 <= wait <= 750
        clock.now += wait
        tries += 1
    assert clock.now > CAPACITY_SECONDS
    assert 10 < tries < 30


def test_a_service_that_answers_again_resets_the_patience() -> None:
    clock = Clock()
    budget = Budget(clock, random.Random(1))
    for _ in range(3):
        while clock.now % BUSY_SECONDS < BUSY_SECONDS / 2:
            clock.now += budget.busy(Exception("throttled"), "job")
        budget.answered()
        clock.now = (clock.now // BUSY_SECONDS + 1) * BUSY_SECONDS
    with pytest.raises(JobUnreachable, match="not answered for 15 minutes"):
        exhaust(budget, clock)


def exhaust(budget: Budget, clock: Clock) -> None:
    while True:
        clock.now += budget.busy(Exception("throttled"), "job")


HOUR = 3600.0


@pytest.mark.parametrize("shift", [-HOUR, HOUR])
def test_a_clock_that_is_set_meanwhile_neither_stretches_a_wait_nor_lets_the_lease_lapse(
    tmp_path: Path, shift: float
) -> None:
    wall, passing = Clock(), Clock()
    wall.now = 1_800_000_000.0

    def pause(seconds: float) -> None:
        passing.now += seconds
        wall.now += seconds + (shift if passing.now == 5 else 0)
        assert passing.now < HOUR, "it waits for the clock to come to where it was"

    store = Store.open(str(tmp_path), environment={})
    context = JobContext(store, LocalBackend(store, {}, ["true"]), clock=wall, timer=passing, pause=pause)
    watch = JobWatch(context, "run-a", RecordingListener(), threading.Event())
    job = Job.plan(training(), 1, context.store_name)
    watch.take(job)
    watch.pause(60)
    assert passing.now == 60
    lease = context.records.lease(job.place, job.name)
    assert lease is not None
    assert wall.now - lease.renewed_at <= 20
    assert not lease.lapsed(wall.now)


def test_a_lease_of_before_the_clock_was_set_back_is_nobodys() -> None:
    lease = Lease(holder="run-a", renewed_at=2 * HOUR)
    assert not lease.lapsed(2 * HOUR - 60)
    assert lease.lapsed(HOUR)
