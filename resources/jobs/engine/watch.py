"""One caller's watch over a job: it asks the backend with patience, keeps the job's lease, follows its log, and stops it."""

import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from docml_contract.log_lines import parse_event
from resources.jobs.backend import Busy, Cursor, Job, JobState
from resources.jobs.engine.records import RENEW_SECONDS, JobContext
from resources.jobs.interface import JobUnreachable, Listener

Answer = TypeVar("Answer")

LAST_LINES = 20
# How long a job may stay invisible that must exist: SageMaker's Describe lags behind Create.
INVISIBLE_SECONDS = 60.0
# How long somebody who presses Ctrl-C twice waits for the job's end.
LEAVING_SECONDS = 10.0


class Canceled(BaseException):
    """The caller's cancel event was set."""


class JobWatch:
    """Watches one job at a time; `last_lines` ends the log that was followed last."""

    def __init__(self, context: JobContext, holder: str, listener: Listener, cancel: threading.Event) -> None:
        self.context = context
        self.holder = holder
        self.listener = listener
        self.cancel = cancel
        self.budget = Budget(context.timer, context.jitter)
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.may_exist = False  # the job may exist: Create was begun, or the job was seen
        self._held: Job | None = None
        self._renewed = 0.0

    # -- the lease

    def take(self, job: Job) -> None:
        """Announce the job to the sweep and take its lease."""
        now = self.context.clock()
        self.context.records.hold(job.place, job.name, self.holder, now)
        self.context.records.activate(job, now)
        self._held, self._renewed = job, self.context.timer()

    def drop(self) -> None:
        """Renew the lease no longer."""
        self._held = None

    def pause(self, seconds: float) -> None:
        """Wait; renew the lease meanwhile. The waiting loop itself renews it, since a lease says that somebody watches.

        Canceled when the caller's event is set.
        """
        until = self.context.timer() + seconds
        while True:
            if self.cancel.is_set():
                raise Canceled
            self._renew()
            left = until - self.context.timer()
            if left <= 0:
                return
            self.context.pause(min(left, 1.0))

    def _renew(self) -> None:
        """Renew the lease if it is ours or nobody's; another run that has attached since keeps it while it lives."""
        if self._held is None or self.context.timer() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = self.context.timer()
        job, now = self._held, self.context.clock()
        lease = self.context.records.known_lease(job.place, job.name)
        if lease is None or lease.holder == self.holder or lease.lapsed(now):
            self.context.records.hold(job.place, job.name, self.holder, now)

    def is_somebody_waiting(self, job: Job) -> bool:
        """Whether another caller renews the job's lease. One that was killed leaves a lease that is not renewed: that takes time to see."""
        first = self.context.records.lease(job.place, job.name)
        lease = first
        while lease is not None and first is not None and not lease.lapsed(self.context.clock()):
            if lease.renewed_at != first.renewed_at:
                return True
            if lease is first:
                self.listener.status(f"waiting to see whether somebody waits for the job {job.name}")
            self.pause(5.0)
            lease = self.context.records.lease(job.place, job.name)
        return False

    # -- asking

    def ask(self, job: Job, question: Callable[[Job], Answer]) -> Answer:
        """Ask the backend, again while it is busy, within the budget."""
        while True:
            try:
                answer = question(job)
            except Busy as error:
                seconds = self.budget.busy(error, job.name)
                if seconds > 10:
                    self.listener.status(f"{job.name}: {error}; asking again in {seconds:.0f} s")
                self.pause(seconds)
            else:
                self.budget.answered()
                return answer

    def see(self, job: Job) -> JobState:
        """The state of a job that must exist, with patience."""
        backend = self.context.backend
        deadline = self.context.timer() + INVISIBLE_SECONDS
        while True:
            state = self.ask(job, backend.observe)
            if state is not None:
                return state
            if self.context.timer() > deadline:
                return JobState("Failed", reason="the job has disappeared", cause="lost")
            self.pause(backend.poll_seconds)

    # -- following

    def follow(self, job: Job) -> JobState:
        """Pass the job's phases and log on to the listener until it has ended; its last state."""
        backend = self.context.backend
        cursor: Cursor = {}
        told = 0
        while True:
            state = self.see(job)
            for phase in state.phases[told:]:
                self.listener.status(phase)
            told = len(state.phases)
            self._relay(job, cursor)
            if state.ended:
                break
            self.pause(backend.poll_seconds)
        deadline = self.context.timer() + backend.log_settle_seconds
        while self.context.timer() < deadline:
            self.pause(min(1.0, backend.log_settle_seconds))
            self._relay(job, cursor)
        return state

    def _relay(self, job: Job, cursor: Cursor) -> None:
        for line in self.ask(job, lambda job: self.context.backend.logs(job, cursor)):
            event = parse_event(line.text, job.nonce)
            if event is None:
                self.last_lines.append(line.text)
                self.listener.line(line.host, line.text)
            else:
                self.listener.event({**event, "host": line.host})

    # -- stopping

    def abandon(self, job: Job) -> None:
        """After an interrupt: stop the job, unless another Dagster run waits for it too, and wait until it has stopped.

        Nothing that goes wrong here may hide the interrupt: the lease lapses, and the sweep looks after what is left. A second
        interrupt leaves sooner, and a third at once.
        """
        records = self.context.records
        try:
            with contextlib.suppress(Exception):
                lease = records.known_lease(job.place, job.name)
                if lease is not None and lease.holder != self.holder and not lease.lapsed(self.context.clock()):
                    return
                self._settle(job, self.stop(job))
        except BaseException:
            with contextlib.suppress(Exception):
                records.give_up(job.place, job.name, self.holder)  # first: the sweep stops it, whatever happens here
                self._settle(job, self.stop(job, LEAVING_SECONDS))
            raise

    def _settle(self, job: Job, state: JobState | None) -> None:
        """Write the end of a stopped job; give up one that may still run: its entry stays, and the sweep looks after it."""
        records = self.context.records
        record = records.read(job.place, job.name)
        if record is not None and not record.ended and state is not None and state.ended:
            if state.status != "Completed":
                self.context.end(record, state)
            records.release(job.place, job.name, self.holder)
        else:
            records.give_up(job.place, job.name, self.holder)

    def stop(self, job: Job, within: float | None = None) -> JobState | None:
        """Stop the job and wait for its end, within a bound. A job whose Create was interrupted may appear late."""
        backend = self.context.backend
        seconds = backend.stop_seconds if within is None else min(within, backend.stop_seconds)
        deadline = self.context.timer() + (seconds if self.may_exist else 0.0)
        while True:
            state = None
            with contextlib.suppress(Busy):
                backend.stop(job)
                state = backend.observe(job)
            if (state is not None and state.ended) or self.context.timer() >= deadline:
                return state
            self.context.pause(min(backend.poll_seconds, 2.0))


# How often one Dagster run may start a job for the same work again after a machine or the service failed.
MAX_ATTEMPTS = 3
# How long one call waits for machines, and how long for a service that does not answer.
CAPACITY_SECONDS = 2 * 3600.0
BUSY_SECONDS = 15 * 60.0


class Budget:
    """The patience of one call of `Jobs.run`. Waits grow from attempt to attempt and are jittered."""

    def __init__(self, timer: Callable[[], float], jitter: random.Random) -> None:
        self._timer = timer
        self._jitter = jitter
        self._capacity_since: float | None = None
        self._capacity_tries = 0
        self._busy_since: float | None = None
        self._busy_tries = 0
        self.attempts = 0  # jobs that this Dagster run started, or tried to, for the work

    def after(self, state: JobState) -> float | None:
        """Seconds until the next attempt may start after one of ours ended so; none: no further attempt."""
        if state.cause == "capacity":
            return self.capacity()
        if state.cause in ("lost", "swept") and self.attempts < MAX_ATTEMPTS:
            return self._wait(5.0, self.attempts, 60.0)
        return None

    def capacity(self) -> float | None:
        """Seconds until machines are asked for again; none: waited long enough."""
        if self._capacity_since is None:
            self._capacity_since = self._timer()
        if self._timer() - self._capacity_since > CAPACITY_SECONDS:
            return None
        self._capacity_tries += 1
        return self._wait(30.0, self._capacity_tries, 600.0)

    def answered(self) -> None:
        """The service answers (again)."""
        self._busy_since, self._busy_tries = None, 0

    def busy(self, error: Exception, what: str) -> float:
        """Seconds until the service is asked again; JobUnreachable when that has gone on for too long."""
        if self._busy_since is None:
            self._busy_since = self._timer()
        if self._timer() - self._busy_since > BUSY_SECONDS:
            raise JobUnreachable(
                f"{what}: the service has not answered for {BUSY_SECONDS / 60:.0f} minutes ({error}); "
                "a job that runs goes on: run again to attach to it"
            ) from error
        self._busy_tries += 1
        return self._wait(1.0, self._busy_tries, 30.0)

    def _wait(self, first: float, tries: int, most: float) -> float:
        return min(most, first * 2.0 ** (tries - 1)) * self._jitter.uniform(0.75, 1.25)
