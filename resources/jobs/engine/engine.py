"""Jobs exactly once, over any backend: one job name an attempt, a record before Create, a lease while somebody waits.

The walk through the attempts at one piece of work is in `waiting.py`; here are its entry and the sweep for orphans.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping

from docml_contract.jobs import JobSpec
from resources.jobs.backend import Backend, Busy, Job, JobState
from resources.jobs.costs import check_cost, cost
from resources.jobs.engine.attempts import Waiting
from resources.jobs.engine.records import ActiveJob, JobRecord, Lease, Records
from resources.jobs.interface import JobResult, Listener, Orphan
from resources.store import Store


class Engine:
    """Implements `resources.jobs.interface.Jobs`. `clock` and `pause` are the outside world's time; tests turn it themselves."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        prices: Mapping[str, float] | None = None,
        *,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.store = store
        self.backend = backend
        self.prices = dict(prices or {})
        self.records = Records(store)
        self.clock = clock
        self.pause = pause
        self.jitter = random.Random()

    def run(
        self,
        spec: JobSpec,
        files: Mapping[str, bytes],
        *,
        holder: str,
        listener: Listener,
        cancel: threading.Event | None = None,
    ) -> JobResult:
        """See `Jobs.run`."""
        check_cost(spec, self.prices)
        self.backend.check(spec)
        return Waiting(self, spec, files, holder, listener, cancel or threading.Event()).complete()

    def with_end(self, record: JobRecord, state: JobState) -> JobRecord:
        """The record with the job's end and cost."""
        return record.with_end(state, cost(record.spec.compute, self.prices, state.billable_seconds))

    def end(self, record: JobRecord, state: JobState) -> JobRecord:
        """Write how a job ended, and stop watching over it."""
        ended = self.with_end(record, state)
        self.records.write(ended)
        self.records.deactivate(record.name)
        return ended

    def orphans(self, holder_ended: Callable[[str], bool]) -> list[Orphan]:
        """See `Jobs.orphans`. Entries of jobs that have ended, or never came into being, are tidied away."""
        found = []
        for entry in self.records.active():
            with contextlib.suppress(Busy):  # the next sweep asks again
                orphan = self._orphan(entry, holder_ended)
                if orphan is not None:
                    found.append(orphan)
        return found

    def _orphan(self, entry: ActiveJob, holder_ended: Callable[[str], bool]) -> Orphan | None:
        record = self.records.read(entry.place, entry.name)
        if record is not None and record.ended:
            self.records.deactivate(entry.name)
            return None
        asked_by = record.holder if record else ""
        lease = self.records.lease(entry.place, entry.name) or Lease(holder=asked_by, renewed_at=entry.since)
        now = self.clock()
        lapsed = lease.lapsed(now)
        if not lapsed and not holder_ended(lease.holder):
            return None
        if record is None:
            if lapsed:
                self.records.deactivate(entry.name)
            return None
        job = Job(record.spec, record.attempt, record.name)
        state = self.backend.observe(job)
        if state is None or state.ended:
            self._tidy(record, state, lapsed)
            return None
        if state.status == "Stopping":
            return None
        spec = record.spec
        reason = (
            f"nobody has renewed its lease for {now - lease.renewed_at:.0f} s"
            if lapsed
            else f"the Dagster run {lease.holder} that waited for it has ended"
        )
        return Orphan(
            record.name, spec.experiment, spec.run, spec.step, spec.model, record.attempt, lease.holder, reason
        )

    def _tidy(self, record: JobRecord, state: JobState | None, lapsed: bool) -> None:
        """A job without a watcher that has ended, or does not exist. A completed one stays to be taken with its output."""
        if state is not None and state.status != "Completed":
            self.end(record, state)
        elif state is not None or lapsed:
            self.records.deactivate(record.name)

    def stop(self, orphan: Orphan) -> None:
        """See `Jobs.stop`."""
        entry = ActiveJob(experiment=orphan.experiment, run=orphan.run, name=orphan.name, since=0.0)
        record = self.records.read(entry.place, entry.name)
        lease = self.records.lease(entry.place, entry.name)
        if record is None or record.ended:
            return
        if lease is not None and lease.holder != orphan.holder and not lease.lapsed(self.clock()):
            return  # somebody has attached to it since
        self.records.write(record.model_copy(update={"swept": True}))
        with contextlib.suppress(Busy):  # the next sweep finds it again
            self.backend.stop(Job(record.spec, record.attempt, record.name))
