"""SageMaker jobs keep the contract of jobs, against an endpoint that runs them as subprocesses over a real S3 server; and what only a
cloud has: accounts, regions, and outputs where the service says that they are."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from docml_contract.hyperparameters import Interval
from docml_contract.jobs import JobSpec, Tuning
from docml_contract.names import OUTPUT
from resources.jobs.engine.records import ORPHAN_SECONDS, JobRecord
from resources.jobs.interface import JobElsewhere
from tests.contracts.jobs_contract import FILES, PLACE, JobsContract, RecordingListener, fill, training, tuning
from tests.resources.jobs.cloud import Cloud, cloud
from tests.resources.jobs.simulation import Actor, World
from tests.servers.s3 import S3Server


@pytest.fixture
def bench(tmp_path: Path, s3_server: S3Server) -> Iterator[Cloud]:
    with cloud(tmp_path, s3_server) as running:
        fill(running.store)
        yield running


class TestSageMakerJobs(JobsContract):
    """The contract."""


def run(world: World, spec: JobSpec, holder: str = "run-a", **options: float) -> Actor:
    def body(actor: Actor) -> object:
        return actor.engine().run(spec, FILES, holder=holder, listener=RecordingListener())

    return world.actor(holder, body, **options)  # type: ignore[arg-type]


def record(world: World) -> JobRecord:
    (key,) = [key for key in world.objects if key.startswith(PLACE.jobs) and key.count("/") == 3 and "lease" not in key]
    return JobRecord.from_bytes(world.objects[key], key)


MOVES: dict[str, Callable[[World], None]] = {
    "account": lambda world: world.service.move(account="210987654321"),
    "region": lambda world: world.service.move(region="us-west-2"),
}


def test_records_name_account_and_region() -> None:
    world = World()
    run(world, training())
    world.run()
    assert record(world).where == "account 123456789012, region eu-west-1"


@pytest.mark.parametrize("move", MOVES)
def test_a_job_of_another_account_or_region_is_no_missing_job(move: str) -> None:
    world = World()
    world.runtime.seconds = 10_000
    run(world, training(), kill_at=60)
    world.run()
    MOVES[move](world)
    second = run(world, training(), "run-b")
    world.run()
    assert type(second.error) is JobElsewhere
    assert "was started in account 123456789012, region eu-west-1, this is account" in str(second.error)
    assert record(world).status == "Asked"
    assert len(world.jobs()) == 0, "nothing was started there"


def test_credentials_of_another_account_while_a_job_is_followed() -> None:
    world = World()
    world.runtime.seconds = 600
    first = run(world, training())
    world.actor("mover", lambda actor: (actor.pause(120), MOVES["account"](world)))
    world.run()
    assert type(first.error) is JobElsewhere
    assert len(world.jobs()) == 0, "nothing was started in the other account"


def test_the_sweep_leaves_what_another_account_runs() -> None:
    world = World()
    world.runtime.seconds = 10_000
    run(world, training(), kill_at=60)
    world.run()
    MOVES["account"](world)
    sweep = world.actor(
        "sweep", lambda actor: actor.engine().orphans(lambda holder: True, []), delay=2 * ORPHAN_SECONDS
    )
    world.run()
    assert sweep.error is None
    assert sweep.result == []
    assert [key for key in world.objects if key.startswith("_active_jobs/")]


@pytest.mark.parametrize("kind", ["training", "tuning"])
def test_the_output_is_taken_from_where_describe_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resources.jobs.trials.picture", lambda *_: b"a picture")
    world = World()
    world.service.artifacts = "output/data-0/model"
    search = Tuning(ranges={"learning_rate": Interval(low=0.1, high=0.9)}, strategy="Random", max_jobs=2)
    actor = run(world, training() if kind == "training" else tuning(search))
    world.run()
    assert actor.error is None, actor.error
    assert actor.result.output_prefix.endswith("/output/data-0/model")
    assert f"{actor.result.output_prefix}/{OUTPUT}" in world.objects
