"""Jobs exactly once, over any backend: one job name an attempt, a record before Create, a lease while somebody waits.

The walk through the attempts at one piece of work is in `attempts.py`; here are its entry and the sweep for orphans.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping

from docml_contract.base import ContractError
from docml_contract.jobs import JobSpec
from docml_contract.names import RunPlace
from resources.jobs.backend import Backend, Busy, JobState
from resources.jobs.engine.attempts import Attempts
from resources.jobs.engine.records import ORPHAN_SECONDS, ActiveJob, JobContext, JobRecord, Lease
from resources.jobs.engine.watch import JobWatch
from resources.jobs.interface import JobElsewhere, JobResult, Listener, Orphan, check_cost
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

    def orphans(self, was_canceled: Callable[[str], bool], damage: list[str]) -> list[Orphan]:
        """See `Jobs.orphans`. Entries of jobs that have ended, or never came into being, are tidied away."""
        found = []
        for key in self.context.records.active():
            try:
                entry = self.context.records.entry(key)
                orphan = self._orphan(entry, was_canceled) if entry is not None else None
            except (Busy, JobElsewhere):  # the next sweep asks again; another account's asks its own
                continue
            except ContractError as error:
                damage.append(f"{key}: {error}")
                continue
            if orphan is not None:
                found.append(orphan)
        return found

    def _orphan(self, entry: ActiveJob, was_canceled: Callable[[str], bool]) -> Orphan | None:
        records = self.context.records
        record = records.read(entry.place, entry.name)
        if record is not None and record.ended:
            self._forget(record)
            return None
        asked_by = record.holder if record else ""
        lease = records.lease(entry.place, entry.name) or Lease(holder=asked_by, renewed_at=entry.since)
        now = self.context.clock()
        canceled = was_canceled(lease.holder)
        if not canceled and not lease.lapsed(now):
            return None
        if record is None:
            if lease.lapsed(now):
                records.deactivate(entry.name)
            return None
        state = self.context.backend.observe(record.job)
        if state is None or state.ended:
            self._tidy(record, state, lease.lapsed(now))
            return None
        if canceled:
            reason = f"the Dagster run {lease.holder} that waited for it was canceled"
        elif lease.is_released:
            reason = f"the Dagster run {lease.holder} that waited for it gave it up"
        else:
            reason = f"nobody has renewed its lease for {now - lease.renewed_at:.0f} s"
        is_waited_for = not canceled and now - lease.renewed_at <= ORPHAN_SECONDS
        if is_waited_for or state.status == "Stopping":
            return None
        spec = record.spec
        return Orphan(
            record.name, spec.experiment, spec.run, spec.step, spec.model, record.attempt, lease.holder, reason
        )

    def _tidy(self, record: JobRecord, state: JobState | None, lapsed: bool) -> None:
        """A job without a watcher that has ended, or does not exist. A completed one stays to be taken with its output."""
        if state is not None and state.status != "Completed":
            self.context.end(record, state)
            self._forget(record)
        elif state is not None or lapsed:
            self._forget(record)

    def _forget(self, record: JobRecord) -> None:
        """Leave neither an entry nor a lease of a job that nobody needs to watch over."""
        place = RunPlace(record.spec.experiment, record.spec.run)
        self.context.records.deactivate(record.name)
        lease = self.context.records.known_lease(place, record.name)
        if lease is None or lease.lapsed(self.context.clock()):
            self.context.records.release(place, record.name, lease.holder if lease else "")

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
            self.context.backend.stop(record.job)
