"""Orchestrators, sweeps and SageMaker in one process, on a clock of their own, one step at a time.

An actor (an orchestrator, a sweep) runs in a greenlet (a thread would wait for the machine at each of its thousands of turns) and
hands over at every boundary: before and after each call to AWS or to the store, and while it sleeps. Which actor goes on is drawn from a seed, so that a schedule can be repeated. At a boundary an
actor may be killed (nothing of it runs any more, no cleanup either) or interrupted (its cleanup runs).
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import boto3
from greenlet import getcurrent, greenlet

from docml_contract.manifests import FileEntry, JobOutput
from docml_contract.names import OUTPUT
from resources.jobs.engine.engine import Engine
from resources.jobs.engine.records import JobContext
from resources.jobs.sagemaker.backend import SageMakerBackend
from resources.store import Store, StoredObject, missing_key
from tests.resources.jobs.cloud import IMAGE, ROLE
from tests.servers.sagemaker.faults import Faults
from tests.servers.sagemaker.jobs import PROCESSING, TRAINING, Job, Kind
from tests.servers.sagemaker.neighbours import CloudWatchLogs
from tests.servers.sagemaker.scripted import ManualClock, ScriptedRuntime
from tests.servers.sagemaker.server import LocalEndpoint, connect
from tests.servers.sagemaker.service import SageMaker

ENVIRONMENT = {"DOCML_SAGEMAKER_ROLE_ARN": ROLE, "DOCML_IMAGE": IMAGE, "AWS_REGION": "eu-west-1"}
URL = "s3://simulated/docml"
PACE = {"calls_a_second": 0.0, "log_calls_a_second": 0.0, "poll_seconds": 10.0, "log_settle_seconds": 1.0}
HORIZON_SECONDS = 3 * 24 * 3600.0


class Killed(BaseException):
    """kill -9: raised in an actor at its last boundary, and by everything that it still touches."""


class Interrupt(BaseException):
    """Dagster's interrupt."""


class Rules(Exception):
    """A promise was broken."""


class Memory:
    """A store's backend that keeps objects in a dict which all actors share."""

    def __init__(self, objects: dict[str, bytes], step: Callable[[], None]) -> None:
        self.objects = objects
        self.step = step

    def get(self, key: str) -> bytes:
        self.step()
        if key not in self.objects:
            raise missing_key(key)
        return self.objects[key]

    def head(self, key: str) -> StoredObject | None:
        self.step()
        return StoredObject(key, len(self.objects[key]), "etag") if key in self.objects else None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self.step()
        return iter(
            [StoredObject(k, len(v), "etag") for k, v in sorted(self.objects.items()) if k.startswith(f"{prefix}/")]
        )

    def put(self, key: str, data: bytes) -> StoredObject:
        self.step()
        self.objects[key] = data
        self.step()
        return StoredObject(key, len(data), "etag")

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.step()
        won = self.objects.setdefault(key, data) is data
        self.step()
        return won

    def delete(self, keys: Sequence[str]) -> None:
        self.step()
        for key in keys:
            self.objects.pop(key, None)
        self.step()


class Actor:
    """Something that runs in steps. `kill_at` and `interrupt_at` count its boundaries from 1."""

    def __init__(
        self,
        world: "World",
        name: str,
        body: Callable[["Actor"], Any],
        *,
        delay: float = 0.0,
        kill_at: int | None = None,
        interrupt_at: int | None = None,
    ) -> None:
        self.world = world
        self.name = name
        self.body = body
        self.kill_at = kill_at
        self.interrupt_at = interrupt_at
        self.boundaries = 0
        self.dead = False
        self.wake = world.clock() + delay
        self.result: Any = None
        self.error: BaseException | None = None
        self.over = False
        self.turns = _Turns(self)

    def go_on(self) -> None:
        """To its next boundary or its end."""
        self.turns.switch()

    def _run(self) -> None:
        try:
            self.result = self.body(self)
        except BaseException as error:
            self.error = error
        self.over = True

    def step(self) -> None:
        """One boundary."""
        if self.dead:
            raise Killed(self.name)
        self.boundaries += 1
        if self.boundaries == self.kill_at:
            self.dead = True
            raise Killed(self.name)
        if self.boundaries == self.interrupt_at:
            raise Interrupt(self.name)
        self._hand_over()

    def pause(self, seconds: float) -> None:
        if self.dead:
            raise Killed(self.name)
        self.wake = self.world.clock() + max(seconds, 0.01)
        self._hand_over()

    def _hand_over(self) -> None:
        assert self.turns.parent is not None
        self.turns.parent.switch()

    def engine(self) -> Engine:
        """An engine whose every contact with the outside is a boundary of this actor."""
        store = Store(URL, {})
        store._backend = Memory(self.world.objects, self.step)  # type: ignore[assignment]
        backend = SageMakerBackend(store, ENVIRONMENT, session=_connected().session, **PACE)
        vars(backend).update(_connected().clients, region=self.world.service.region)
        backend._jitter = random.Random(self.name)
        engine = Engine(store, backend)
        engine.context = JobContext(
            store,
            backend,
            clock=self.world.clock,
            timer=self.world.clock,
            pause=self.pause,
            jitter=random.Random(self.name),
        )
        return engine


class _Turns(greenlet):
    """What an actor runs in, known by it."""

    def __init__(self, actor: Actor) -> None:
        super().__init__(actor._run)
        self.actor = actor


class _Dispatch:
    """Lets one boto3 session serve all worlds: a call belongs to the actor in whose turn it is made."""

    def reply(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        turns = getcurrent()
        assert isinstance(turns, _Turns)
        actor = turns.actor
        actor.step()
        answer = actor.world.endpoint.reply(path, headers, body)
        actor.step()
        return answer


class _Connected:
    def __init__(self) -> None:
        credentials = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "eu-west-1"}
        self.session = boto3.Session(**credentials)
        connect(self.session, _Dispatch())  # type: ignore[arg-type]
        backend = SageMakerBackend(Store(URL, {}), ENVIRONMENT, session=self.session, **PACE)
        names = ("sagemaker", "cloudwatch", "sts", "typed_layer")
        self.clients = {name: getattr(backend, name) for name in names}
        for client in (
            backend.sagemaker,
            backend.cloudwatch,
            backend.sts,
        ):  # built anew for every call: half of a schedule's time
            client._user_agent_creator.to_string = lambda: "simulated"


_connection: list[_Connected] = []


def _connected() -> _Connected:
    """Clients are made once: that takes longer than a hundred schedules."""
    if not _connection:
        _connection.append(_Connected())
    return _connection[0]


class _WatchedSageMaker(SageMaker):
    """Breaks off where a promise is broken: two jobs for one work at a time, or one after another has completed."""

    def add(self, kind: Kind, request: dict[str, Any], *, parent: Job | None = None) -> Job:
        if parent is None and (kind.name, request[f"{kind.noun}Name"]) not in self.jobs:
            work = _work_of(request["Tags"])
            for job in self.jobs.values():
                if job.parent is None and _work_of(job.tags) == work:
                    if not job.done:
                        raise Rules(f"{request[f'{kind.noun}Name']} created while {job.name} runs")
                    if job.status == "Completed":
                        raise Rules(f"{request[f'{kind.noun}Name']} created although {job.name} has completed")
        return super().add(kind, request, parent=parent)


def _work_of(tags: list[dict[str, str]]) -> tuple[str, ...]:
    return tuple(tag["Value"] for tag in tags)


class World:
    """One simulated region."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.clock = ManualClock()
        self.faults = Faults()
        self.objects: dict[str, bytes] = {}
        self.failing: list[str] = []  # reasons with which the next jobs fail
        self.logs = CloudWatchLogs(self.faults, self.clock)
        self.runtime = ScriptedRuntime(
            self.faults, self.clock, seconds=30.0, complete=self._complete, outcome=self._outcome
        )
        self.service = _WatchedSageMaker(self.runtime, faults=self.faults, clock=self.clock)
        self.runtime.service = self.service
        self.endpoint = LocalEndpoint(self.service, self.logs)
        self.actors: list[Actor] = []

    def _outcome(self, job: Job) -> str | None:
        return self.failing.pop(0) if self.failing else None

    def _complete(self, job: Job) -> None:
        """What the containers of a successful job leave in the bucket."""
        self.logs.write(job.kind.log_group, f"{job.name}/algo-1-1", "done")
        if job.kind is PROCESSING:
            uri = job.request["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3Uri"]
        else:
            assert job.kind is TRAINING
            uri = job.artifacts_uri
        prefix = uri.removeprefix("s3://simulated/docml/")
        content = json.dumps({"job": job.name}).encode()
        self.objects[f"{prefix}/result"] = content
        entry = FileEntry(path="result", size=len(content), sha256="0" * 64)
        output = JobOutput(command="train", data_version="v", files=(entry,))
        self.objects[f"{prefix}/{OUTPUT}"] = output.to_bytes()

    def actor(self, name: str, body: Callable[[Actor], Any], **options: Any) -> Actor:
        made = Actor(self, name, body, **options)
        self.actors.append(made)
        return made

    def run(self) -> None:
        """Until every actor is over. Rules, if they do not end."""
        end = self.clock.now + HORIZON_SECONDS
        while True:
            waiting = [actor for actor in self.actors if not actor.over]
            if not waiting:
                return
            if self.clock.now > end:
                raise Rules(f"{[actor.name for actor in waiting]} did not end")
            ready = [actor for actor in waiting if actor.wake <= self.clock.now]
            if not ready:
                self.clock.now = min(actor.wake for actor in waiting)
                self.runtime.advance()
                continue
            self.random.choice(ready).go_on()

    def jobs(self) -> list[Job]:
        """The jobs that orchestrators created; a tuning's trials are not among them."""
        return [job for job in self.service.jobs.values() if job.parent is None]
