"""Leases and orphans: who waits is left alone, who has gone leaves nothing that bills on."""

import json
from typing import Any

import pytest

from docml_contract.jobs import JobSpec
from resources.jobs.backend import Job
from resources.jobs.engine.records import LAPSE_SECONDS, ORPHAN_SECONDS, RENEW_SECONDS, ActiveJob
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


def look(
    world: World, canceled: set[str], *, stop: bool = False, delay: float = 0.0, damage: list[str] | None = None
) -> list[Orphan]:
    def body(actor: Actor) -> list[Orphan]:
        engine = actor.engine()
        found = engine.orphans(lambda holder: holder in canceled, [] if damage is None else damage)
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


UNREADABLE = {
    "entry": "_active_jobs/EXP-2-r1-training-a-1.json",
    "entry of no experiment": "_active_jobs/x.json",
    "lease": PLACE.job_lease(NAME),
    "record": PLACE.job_record(NAME),
}


@pytest.mark.parametrize("what", UNREADABLE)
@pytest.mark.parametrize("content", [b"", b'{"exp', b"\xff\xfe"], ids=["empty", "cut", "no text"])
def test_what_cannot_be_read_is_named_and_its_job_left_alone(what: str, content: bytes) -> None:
    world = killed_world()
    key = UNREADABLE[what]
    if what == "entry of no experiment":
        content = ActiveJob(experiment="../other", run=1, name="x", since=0).to_bytes()
    world.objects[key] = content
    damage: list[str] = []
    found = look(world, {"run-a"}, damage=damage)
    (said,) = damage
    assert ("../other" if what == "entry of no experiment" else key) in said
    assert [orphan.name for orphan in found] == ([NAME] if what.startswith("entry") else [])
    assert world.service.job("TrainingJob", NAME).status == "InProgress"


@pytest.mark.parametrize("key", [f"_active_jobs/{NAME}.json", PLACE.job_lease(NAME), PLACE.job_record(NAME)])
def test_what_is_deleted_of_a_running_job_is_written_anew_by_who_comes_back(key: str) -> None:
    world = killed_world()
    del world.objects[key]
    assert look(world, set()) == []
    world.runtime.seconds = 600
    again = orchestrator(world, "run-b")
    world.run()
    assert again.error is None, again.error
    assert (again.result.name, again.result.launched) == (NAME, False)
    assert not [key for key in world.objects if key.endswith(".lease.json") or key.startswith("_active_jobs/")]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_lease_that_cannot_be_read_is_nobodys_to_whoever_waits(interrupted: bool) -> None:
    world = World()
    world.runtime.seconds = 1000
    waiting = orchestrator(world, "run-a")

    def damage(actor: Actor) -> None:
        actor.pause(300)
        world.objects[PLACE.job_lease(NAME)] = b"{"
        if interrupted:
            waiting.interrupt_at = waiting.boundaries + 1
        else:
            actor.pause(2 * RENEW_SECONDS)
            assert json.loads(world.objects[PLACE.job_lease(NAME)])["holder"] == "run-a"
            world.objects[PLACE.job_lease(NAME)] = b"{"
            world.runtime.seconds = 0

    damaging = world.actor("damage", damage)
    world.run()
    assert damaging.error is None, damaging.error
    assert isinstance(waiting.error, Interrupt) if interrupted else waiting.error is None, waiting.error
    assert world.service.job("TrainingJob", NAME).status == ("Stopped" if interrupted else "Completed")
    assert not [key for key in world.objects if key.endswith(".lease.json") or key.startswith("_active_jobs/")]


def test_a_lease_is_renewed_for_as_long_as_somebody_waits() -> None:
    world = World()
    world.runtime.seconds = 3600
    waiting = orchestrator(world, "run-a")
    found: list[Orphan] = []

    def sensor(actor: Actor) -> None:
        for _ in range(50):
            found.extend(actor.engine().orphans(lambda holder: False, []))
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
