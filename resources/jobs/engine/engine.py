"""Jobs exactly once, over any backend: one job name an attempt, a record before Create, a lease while somebody waits.

The walk through the attempts at one piece of work is in `attempts.py`; here are its entry and the sweep for orphans.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping

from docml_contract.jobs import JobSpec
from resources.jobs.backend import Backend, Busy, Job, JobState
from resources.jobs.costs import check_cost
from resources.jobs.engine.attempts import Attempts
from resources.jobs.engine.records import ActiveJob, JobContext, JobRecord, Lease
from resources.jobs.engine.watch import JobWatch
from resources.jobs.interface import JobResult, Listener, Orphan
from resources.store import Store


class Engine:
    """Implements `resources.jobs.interface.Jobs`."""

    def __init__(self, store: Store, backend: Backend, prices: Mapping[str, float] | None = None) -> None:
        self.context = JobContext(store, backend, dict(prices or {}))

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
        check_cost(spec, self.context.prices)
        self.context.backend.check(spec)
        watch = JobWatch(self.context, holder, listener, cancel or threading.Event())
        return Attempts(self.context, spec, files, watch).complete()

    def orphans(self, holder_ended: Callable[[str], bool]) -> list[Orphan]:
        """See `Jobs.orphans`. Entries of jobs that have ended, or never came into being, are tidied away."""
        found = []
        for entry in self.context.records.active():
            with contextlib.suppress(Busy):  # the next sweep asks again
                orphan = self._orphan(entry, holder_ended)
                if orphan is not None:
                    found.append(orphan)
        return found

    def _orphan(self, entry: ActiveJob, holder_ended: Callable[[str], bool]) -> Orphan | None:
        record = self.context.records.read(entry.place, entry.name)
        if record is not None and record.ended:
            self.context.records.deactivate(entry.name)
            return None
        asked_by = record.holder if record else ""
        lease = self.context.records.lease(entry.place, entry.name) or Lease(holder=asked_by, renewed_at=entry.since)
        now = self.context.clock()
        lapsed = lease.lapsed(now)
        if not lapsed and not holder_ended(lease.holder):
            return None
        if record is None:
            if lapsed:
                self.context.records.deactivate(entry.name)
            return None
        job = Job(record.spec, record.attempt, record.name)
        state = self.context.backend.observe(job)
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
            self.context.end(record, state)
        elif state is not None or lapsed:
            self.context.records.deactivate(record.name)

    def stop(self, orphan: Orphan) -> None:
        """See `Jobs.stop`."""
        entry = ActiveJob(experiment=orphan.experiment, run=orphan.run, name=orphan.name, since=0.0)
        record = self.context.records.read(entry.place, entry.name)
        lease = self.context.records.lease(entry.place, entry.name)
        if record is None or record.ended:
            return
        if lease is not None and lease.holder != orphan.holder and not lease.lapsed(self.context.clock()):
            return  # somebody has attached to it since
        self.context.records.write(record.model_copy(update={"swept": True}))
        with contextlib.suppress(Busy):  # the next sweep finds it again
            self.context.backend.stop(Job(record.spec, record.attempt, record.name))
