"""Leases and orphans: who waits is left alone, who has gone leaves nothing that bills on."""

from typing import Any

from docml_contract.jobs import JobSpec
from resources.jobs.backend import Job
from resources.jobs.engine.records import LAPSE_SECONDS, ORPHAN_SECONDS
from resources.jobs.interface import Orphan
from tests.contracts.jobs_contract import FILES, PLACE, RecordingListener, compute, training
from tests.resources.jobs.simulation import URL, Actor, Interrupt, World

SPEC: JobSpec = training()
NAME = Job.plan(SPEC, 1, URL).name


def orchestrator(world: World, holder: str, **options: Any) -> Actor:
    def body(actor: Actor) -> Any:
        return actor.engine().run(SPEC, FILES, holder=holder, listener=RecordingListener())

    return world.actor(holder, body, **options)


def killed_world() -> World:
    """A job runs on, and its orchestrator was killed while it waited."""
    world = World()
    world.runtime.seconds = 10_000
    orchestrator(world, "run-a", kill_at=60)
    world.run()
    assert world.service.job("TrainingJob", NAME).status == "InProgress"
    return world


def look(world: World, canceled: set[str], *, stop: bool = False, delay: float = 0.0) -> list[Orphan]:
    def body(actor: Actor) -> list[Orphan]:
        engine = actor.engine()
        found = engine.orphans(lambda holder: holder in canceled)
        for orphan in found if stop else ():
            engine.stop(orphan)
        return found

    actor = world.actor("sensor", body, delay=delay)
    world.run()
    assert actor.error is None, actor.error
    result: list[Orphan] = actor.result
    return result


def test_a_job_is_an_orphan_when_nobody_has_come_back_for_long() -> None:
    world = killed_world()
    assert look(world, set()) == []
    assert look(world, set(), delay=LAPSE_SECONDS + 5) == []
    (orphan,) = look(world, set(), delay=ORPHAN_SECONDS)
    assert (orphan.name, orphan.experiment, orphan.run, orphan.step) == (NAME, PLACE.experiment, 1, "training")
    assert (orphan.model, orphan.attempt, orphan.holder) == ("m", 1, "run-a")
    assert "nobody has renewed its lease for" in orphan.reason


def test_a_job_is_an_orphan_when_its_dagster_run_was_canceled() -> None:
    (orphan,) = look(killed_world(), {"run-a"})
    assert "run-a" in orphan.reason


def test_an_orphan_is_stopped_and_the_next_run_begins_the_next_attempt() -> None:
    world = killed_world()
    assert look(world, {"run-a"}, stop=True)
    assert look(world, {"run-a"}, delay=60) == []
    assert world.service.job("TrainingJob", NAME).status == "Stopped"
    assert not [key for key in world.objects if key.startswith("_active_jobs/")]
    look(world, set(), delay=LAPSE_SECONDS)
    world.runtime.seconds = 30
    again = orchestrator(world, "run-b")
    world.run()
    assert again.result.attempt == 2


def test_a_job_that_somebody_has_attached_to_is_no_orphan() -> None:
    world = killed_world()
    (orphan,) = look(world, {"run-a"})
    other = orchestrator(world, "run-b")
    stopped: list[bool] = []

    def late_stop(actor: Actor) -> None:
        actor.pause(50)
        actor.engine().stop(orphan)
        stopped.append(True)

    world.actor("late", late_stop)
    world.runtime.seconds = 400
    world.run()
    assert stopped
    assert other.error is None
    assert other.result.name == NAME


def test_a_lease_is_renewed_for_as_long_as_somebody_waits() -> None:
    world = World()
    world.runtime.seconds = 3600
    waiting = orchestrator(world, "run-a")
    found: list[Orphan] = []

    def sensor(actor: Actor) -> None:
        for _ in range(50):
            found.extend(actor.engine().orphans(lambda holder: False))
            actor.pause(60)

    world.actor("sensor", sensor)
    world.run()
    assert waiting.result.launched
    assert found == []


def test_an_interrupted_run_leaves_the_job_to_another_that_waits_for_it() -> None:
    world = World()
    world.runtime.seconds = 600
    first = orchestrator(world, "run-a", interrupt_at=120)
    second = orchestrator(world, "run-b", delay=60.0)
    world.run()
    assert isinstance(first.error, Interrupt)
    assert second.error is None
    assert second.result.name == NAME
    assert len(world.jobs()) == 1


def test_a_job_of_other_work_for_which_nobody_waits_makes_room() -> None:
    world = killed_world()
    other = training(compute=compute(instance_count=2))  # the settings of instances do not freeze
    again = world.actor(
        "run-b", lambda actor: actor.engine().run(other, FILES, holder="run-b", listener=RecordingListener())
    )
    world.run()
    assert again.error is None
    assert again.result.attempt == 2
    assert world.service.job("TrainingJob", NAME).status == "Stopped"


def test_a_job_of_other_work_for_which_somebody_waits_is_left_alone() -> None:
    world = World()
    world.runtime.seconds = 600
    first = orchestrator(world, "run-a")
    other = training(compute=compute(instance_count=2))
    second = world.actor(
        "run-b",
        lambda actor: actor.engine().run(other, FILES, holder="run-b", listener=RecordingListener()),
        delay=60.0,
    )
    world.run()
    assert first.error is None
    assert "does other work under the same name" in str(second.error)
    assert len(world.jobs()) == 1
