"""What is tried again, how often, and for how long."""

import random

import pytest

from resources.jobs.backend import JobState
from resources.jobs.engine.watch import BUSY_SECONDS, CAPACITY_SECONDS, MAX_ATTEMPTS, Budget
from resources.jobs.interface import JobUnreachable


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
