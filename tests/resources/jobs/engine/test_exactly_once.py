"""Never a second job for the same work, never an orphan: kills at every boundary, and a thousand random schedules."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from docml_contract.hyperparameters import Interval
from docml_contract.jobs import JobSpec, Tuning
from resources.jobs.interface import JobError, JobFailed
from tests.contracts.jobs_contract import FILES, RecordingListener, compute, preparation, training, tuning
from tests.resources.jobs.simulation import Actor, Interrupt, Killed, Rules, World

SEARCH = Tuning(
    ranges={"learning_rate": Interval(low=0.1, high=0.9)}, strategy="Random", max_jobs=2, max_parallel_jobs=2
)
SPECS: dict[str, JobSpec] = {"processing": preparation(), "training": training(), "tuning": tuning(SEARCH)}
SCHEDULES = 1000


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a search takes longer than all the rest of its history."""
    monkeypatch.setattr("resources.jobs.trials.picture", lambda *_: b"a picture")


def orchestrator(spec: JobSpec, holder: str) -> Callable[[Actor], Any]:
    return lambda actor: actor.engine().run(spec, FILES, holder=holder, listener=RecordingListener())


def sweep(canceled: set[str], ticks: int) -> Callable[[Actor], Any]:
    """The sensor: a look every minute."""

    def body(actor: Actor) -> None:
        for _ in range(ticks):
            engine = actor.engine()
            for orphan in engine.orphans(lambda holder: holder in canceled, []):
                engine.stop(orphan)
            actor.pause(60)

    return body


def check_end(world: World) -> None:
    """Nothing runs any more, and nothing is watched over."""
    running = [job.name for job in world.jobs() if not job.done]
    if running:
        raise Rules(f"{running} run although nobody waits")
    watched = [key for key in world.objects if key.startswith("_active_jobs/")]
    if watched:
        raise Rules(f"{watched} are still watched over")


def undisturbed(kind: str) -> int:
    """How many boundaries a run has."""
    world = World()
    actor = world.actor("first", orchestrator(SPECS[kind], "run-a"))
    world.run()
    assert actor.error is None, actor.error
    assert actor.result.launched
    return actor.boundaries


@pytest.mark.parametrize("kind", SPECS)
def test_killed_at_every_boundary_then_run_again(kind: str) -> None:
    boundaries = undisturbed(kind)
    assert boundaries > 20
    for kill_at in range(1, boundaries + 1):
        world = World()
        first = world.actor("first", orchestrator(SPECS[kind], "run-a"), kill_at=kill_at)
        world.run()
        assert isinstance(first.error, Killed)
        world.actor("sweep", sweep(set(), 1))  # between the kill and the next run, which attaches
        world.run()
        second = world.actor("second", orchestrator(SPECS[kind], "run-b"))
        world.run()
        assert second.error is None, f"killed at boundary {kill_at}: {second.error!r}"
        assert second.result.output.data_version == "v"
        assert [job.status for job in world.jobs()] == ["Completed"], f"killed at boundary {kill_at}"
        world.actor("sweep", sweep(set(), 1))  # killed between the record's end and the list of active jobs
        world.run()
        check_end(world)


@pytest.mark.parametrize("kind", SPECS)
def test_interrupted_at_every_boundary_nothing_is_left_behind(kind: str) -> None:
    for interrupt_at in range(1, undisturbed(kind) + 1):
        world = World()
        first = world.actor("first", orchestrator(SPECS[kind], "run-a"), interrupt_at=interrupt_at)
        world.run()
        assert isinstance(first.error, Interrupt), f"interrupted at boundary {interrupt_at}: {first.error!r}"
        world.actor("sweep", sweep({"run-a"}, 4), delay=200)
        world.run()
        check_end(world)
        assert len(world.jobs()) <= 1


def test_a_lost_answer_to_create_is_attached_to() -> None:
    for kind, operation in (
        ("processing", "CreateProcessingJob"),
        ("training", "CreateTrainingJob"),
        ("tuning", "CreateHyperParameterTuningJob"),
    ):
        world = World()
        world.faults.order(operation, "lost_response")
        actor = world.actor("first", orchestrator(SPECS[kind], "run-a"))
        world.run()
        assert actor.error is None, actor.error
        assert [job.status for job in world.jobs()] == ["Completed"]


def test_capacity_is_waited_for_within_the_budget() -> None:
    world = World()
    world.faults.order_job("capacity", 3)
    actor = world.actor("first", orchestrator(SPECS["training"], "run-a"))
    world.run()
    assert actor.result.attempt == 4
    world = World()
    world.faults.order_job("capacity", 10_000)
    actor = world.actor("first", orchestrator(SPECS["training"], "run-a"))
    world.run()
    assert isinstance(actor.error, JobFailed)
    assert "CapacityError" in actor.error.reason
    assert len(world.jobs()) < 40


def test_a_failing_service_is_tried_a_bounded_number_of_times() -> None:
    world = World()
    world.failing = ["InternalServerError: We encountered an internal error. Please try again."] * 10
    actor = world.actor("first", orchestrator(SPECS["training"], "run-a"))
    world.run()
    assert isinstance(actor.error, JobFailed)
    assert len(world.jobs()) == 3


def test_two_runs_that_want_the_same_share_one_job() -> None:
    for seed in range(20):
        world = World(seed)
        both = [world.actor(name, orchestrator(SPECS["training"], name)) for name in ("run-a", "run-b")]
        world.run()
        assert [actor.error for actor in both] == [None, None]
        assert len(world.jobs()) == 1


def schedule(seed: int) -> World:
    """One random history: several runs for the same work, killed, interrupted and disturbed, with the sensor between them."""
    draw = random.Random(seed)
    world = World(seed)
    spec = SPECS[draw.choice(list(SPECS))]
    world.faults.describe_lag = draw.choice((0, 0, 1, 3))
    world.faults.log_lag = draw.choice((0.0, 0.0, 5.0))
    world.faults.clock_skew = draw.choice((0.0, 0.0, -45.0, 600.0))
    for _ in range(draw.randrange(6)):
        world.faults.order(
            draw.choice(("*", "*", f"Create{noun(spec)}")), draw.choice(("throttle", "server_error", "lost_response"))
        )
    world.faults.order_job("capacity", draw.choice((0, 0, 0, 1, 2)) or 1) if draw.random() < 0.3 else None
    reasons = ("InternalServerError: please try again", "AlgorithmError: the loss is NaN, exit code: 1")
    world.failing = [draw.choice(reasons) for _ in range(draw.choice((0, 0, 0, 1, 2)))]
    ended: set[str] = set()
    begin = 0.0
    for number in range(draw.randrange(1, 5)):
        fate = draw.choice(("none", "kill", "kill", "interrupt"))
        at = draw.randrange(1, 120)
        world.actor(
            f"run-{number}",
            orchestrator(spec, f"run-{number}"),
            delay=begin,
            kill_at=at if fate == "kill" else None,
            interrupt_at=at if fate == "interrupt" else None,
        )
        begin += draw.choice((0.0, 5.0, 40.0, 300.0))
        if draw.random() < 0.3:
            ended.add(f"run-{number}") if fate == "kill" else None
    world.actor("sensor", sweep(ended, 30), delay=draw.choice((0.0, 100.0)))
    world.run()
    world.actor("last-sweep", sweep({actor.name for actor in world.actors}, 6), delay=150.0)
    world.run()
    return world


def noun(spec: JobSpec) -> str:
    return {"processing": "ProcessingJob", "training": "TrainingJob", "tuning": "HyperParameterTuningJob"}[spec.kind]


def check_schedule(seed: int) -> None:
    world = schedule(seed)
    for actor in world.actors:
        allowed = (Killed, Interrupt, JobError)
        if actor.error is not None and not isinstance(actor.error, allowed):
            raise Rules(f"{actor.name} ended with {actor.error!r}") from actor.error
    check_end(world)


@pytest.mark.parametrize("part", range(10))
def test_a_thousand_random_schedules(part: int) -> None:
    for seed in range(part * SCHEDULES // 10, (part + 1) * SCHEDULES // 10):
        try:
            check_schedule(seed)
        except Exception as error:
            raise AssertionError(f"schedule {seed}: {error}") from error


def test_costs_are_refused_before_anything_is_written() -> None:
    world = World()
    spec = training(compute=compute(max_cost_usd=0.01))

    def body(actor: Actor) -> Any:
        engine = actor.engine()
        engine.context.prices = {"ml.m5.xlarge": 3.6}
        return engine.run(spec, FILES, holder="run-a", listener=RecordingListener())

    actor = world.actor("first", body)
    world.run()
    assert "MAX_COST_USD is 0.01" in str(actor.error)
    assert world.objects == {}
    assert world.endpoint.calls == []
