"""What the store knows of jobs: the record (intent, then end), the lease of whoever waits, the list of active jobs.

`JobContext` is what all parts of the engine share: store, backend, records, prices and time.

    <run>/jobs/<name>.json         written before the job is created, put-if-absent; completed when its end is seen
    <run>/jobs/<name>.lease.json   renewed by whoever waits for the job; lapses when nobody does
    _active_jobs/<name>.json       points to the record while the job's end has not been seen

Times are compared between machines: their clocks must agree within a minute or so, as AWS itself demands.
"""

import contextlib
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from pydantic import Field

from docml_contract.base import Document, Moment, UnreadableDocument
from docml_contract.jobs import JobSpec
from docml_contract.names import ACTIVE_JOBS, STORE_IDENTITY, RunPlace
from resources.errors import MissingKey
from resources.jobs.backend import ENDED, Backend, Cause, Job, JobState
from resources.jobs.interface import cost
from resources.store import Store

# A lease not renewed for this long has lapsed: whoever held it is dead or cut off.
LAPSE_SECONDS = 120.0
# Nobody comes back for a job whose lease has not been renewed for this long. Whoever was killed, or cut off from the store for as long
# as a store is waited for, has time to attach to the job again.
ORPHAN_SECONDS = 15 * 60.0
RENEW_SECONDS = 20.0

# A job is found again by its name.
REMEDY = "Restore the file; or remove it and execute the run again, which attaches to the job or takes its result"

_RECORD = re.compile(r"[A-Za-z0-9-]+\.json")

AnyDocument = TypeVar("AnyDocument", bound=Document)


class JobRecord(Document):
    """jobs/<name>.json: what was asked, by whom, and how it ended."""

    schema_version: int = 1
    name: str
    backend: str = Field(description="local or sagemaker")
    where: str = Field("", description="account and region, or the machine: the job is looked for nowhere else")
    attempt: int
    spec_hash: str
    spec: JobSpec
    request: dict[str, Any] = Field(description="the request as it was sent")
    nonce: str = Field("", description="prefix of the job's events, so that nothing else in its log is taken for one")
    holder: str = Field(description="the Dagster run that asked")
    created_at: float = Field(description="seconds since the epoch")
    status: Literal["Asked", "Refused", "Completed", "Failed", "Stopped"] = Field(
        "Asked", description="Asked: its end has not been seen; Refused: it was never created"
    )
    cause: Cause | None = None
    reason: str = ""
    output_prefix: str = Field("", description="store key of a completed job's output")
    swept: bool = Field(False, description="stopped because nobody waited for it")
    started_at: Literal[""] | Moment = ""
    ended_at: str = ""
    seconds: float = 0.0
    billable_seconds: float | None = None
    cost_usd: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the job's end is on record."""
        return self.status in ENDED

    @property
    def job(self) -> Job:
        """The job of this record."""
        return Job(self.spec, self.attempt, self.name, self.nonce, self.where)

    def with_end(self, state: JobState, cost_usd: float | None) -> "JobRecord":
        """The record of a job whose end was seen."""
        cause = None if state.status == "Completed" else "swept" if self.swept else state.cause
        return self.model_copy(
            update={
                "status": state.status,
                "cause": cause,
                "reason": state.reason,
                "started_at": state.started_at,
                "ended_at": state.ended_at,
                "seconds": state.seconds,
                "billable_seconds": state.billable_seconds,
                "cost_usd": cost_usd,
            }
        )


class Lease(Document):
    """jobs/<name>.lease.json: who waits for the job."""

    holder: str
    renewed_at: float = Field(description="seconds since the epoch; 0: released")

    @property
    def is_released(self) -> bool:
        """Whether whoever held it gave it up, and the job with it."""
        return self.renewed_at == 0.0

    def lapsed(self, now: float) -> bool:
        """Whether nobody has renewed it lately. A time to come was written before a clock was set back."""
        return abs(now - self.renewed_at) > LAPSE_SECONDS


class ActiveJob(Document):
    """_active_jobs/<name>.json."""

    experiment: str
    run: int
    name: str
    since: float

    @property
    def place(self) -> RunPlace:
        """The run that the job belongs to."""
        return RunPlace(self.experiment, self.run)


class Records:
    """Reads and writes records, leases and entries of active jobs."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def read(self, place: RunPlace, name: str) -> JobRecord | None:
        """The record of a job of a run, or None."""
        return self._get(JobRecord, place.job_record(name))

    def intend(self, record: JobRecord) -> bool:
        """Write the record unless there is one; whether it is ours."""
        return self.store.put_if_absent(_record_key(record), record.to_bytes())

    def write(self, record: JobRecord) -> None:
        """Replace the record."""
        self.store.put(_record_key(record), record.to_bytes())

    def activate(self, job: Job, now: float) -> None:
        """List the job as one whose end has not been seen."""
        entry = ActiveJob(experiment=job.spec.experiment, run=job.spec.run, name=job.name, since=now)
        self.store.put(_active_key(job.name), entry.to_bytes())

    def deactivate(self, name: str) -> None:
        """Take the job off the list."""
        self.store.delete([_active_key(name)])

    def active(self) -> list[str]:
        """Where the listed jobs of all experiments stand."""
        return [stored.key for stored in self.store.list(ACTIVE_JOBS)]

    def entry(self, key: str) -> ActiveJob | None:
        """A listed job; None where it has ended meanwhile. UnreadableDocument."""
        return self._get(ActiveJob, key)

    def lease(self, place: RunPlace, name: str) -> Lease | None:
        """The lease of a job of a run, or None. UnreadableDocument."""
        return self._get(Lease, place.job_lease(name))

    def known_lease(self, place: RunPlace, name: str) -> Lease | None:
        """The lease; None also where it cannot be read: to whoever waits for the job, or ends it, it is nobody's."""
        with contextlib.suppress(UnreadableDocument):
            return self.lease(place, name)
        return None

    def hold(self, place: RunPlace, name: str, holder: str, now: float) -> None:
        """Take or renew the lease."""
        self.store.put(place.job_lease(name), Lease(holder=holder, renewed_at=now).to_bytes())

    def release(self, place: RunPlace, name: str, holder: str) -> None:
        """Give the lease up if it is ours, or says nothing that can be read."""
        try:
            lease = self.lease(place, name)
        except UnreadableDocument:
            is_ours = True
        else:
            is_ours = lease is not None and lease.holder == holder
        if is_ours:
            self.store.delete([place.job_lease(name)])

    def give_up(self, place: RunPlace, name: str, holder: str) -> None:
        """Say that nobody will come back for a job that may still run."""
        self.hold(place, name, holder, 0.0)

    def _get(self, model: type[AnyDocument], key: str) -> AnyDocument | None:
        try:
            return model.from_bytes(self.store.get(key), self.store.uri(key))
        except MissingKey:
            return None
        except UnreadableDocument as error:
            raise UnreadableDocument(f"{error}. {REMEDY}") from error


def job_records(store: Store, place: RunPlace) -> list[JobRecord]:
    """The records of a run's jobs, oldest first."""
    start = len(place.jobs) + 1
    keys = [stored.key for stored in store.list(place.jobs)]
    names = [key for key in keys if _RECORD.fullmatch(key[start:])]  # not the leases, logs and outputs beside them
    try:
        records = [JobRecord.from_bytes(store.get(key), store.uri(key)) for key in names]
    except UnreadableDocument as error:
        raise UnreadableDocument(f"{error}. {REMEDY}") from error
    return sorted(records, key=lambda record: record.created_at)


class StoreIdentity(Document):
    """_store.json: what a folder store is called in the names of its jobs, at whatever path it is mounted."""

    name: str = Field(description="the store's URL when its first job was planned")


@dataclass
class JobContext:
    """What all parts of the engine share. `clock`, `timer` and `pause` are the outside world's time; tests turn it themselves.

    `clock` is what is written and compared between processes; `timer` measures how long something takes, whoever sets the clock meanwhile.
    """

    store: Store
    backend: Backend
    prices: Mapping[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    timer: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    jitter: random.Random = field(default_factory=random.Random)

    @cached_property
    def records(self) -> Records:
        """The records of this store."""
        return Records(self.store)

    @cached_property
    def store_name(self) -> str:
        """What the store is called in job names. One folder seen at two paths is one store, and has one job for one work."""
        if self.store.local_path is None:
            return self.store.url
        self.store.put_if_absent(STORE_IDENTITY, StoreIdentity(name=self.store.url).to_bytes())
        return StoreIdentity.from_bytes(self.store.get(STORE_IDENTITY), self.store.uri(STORE_IDENTITY)).name

    def with_end(self, record: JobRecord, state: JobState) -> JobRecord:
        """The record with the job's end and cost."""
        return record.with_end(state, cost(record.spec.compute, self.prices, state.billable_seconds))

    def end(self, record: JobRecord, state: JobState) -> JobRecord:
        """Write how a job ended, and take it off the list of active jobs."""
        ended = self.with_end(record, state)
        self.records.write(ended)
        self.records.deactivate(record.name)
        return ended


def _record_key(record: JobRecord) -> str:
    return RunPlace(record.spec.experiment, record.spec.run).job_record(record.name)


def _active_key(name: str) -> str:
    return f"{ACTIVE_JOBS}/{name}.json"
