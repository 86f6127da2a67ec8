"""What a caller does while it waits for a job: ask the backend with patience, sleep, and keep the job's lease."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from resources.jobs.backend import Busy, Job
from resources.jobs.engine.records import RENEW_SECONDS
from resources.jobs.engine.retries import Budget
from resources.jobs.interface import Listener

if TYPE_CHECKING:
    from resources.jobs.engine.engine import Engine

Answer = TypeVar("Answer")


class Canceled(BaseException):
    """The caller's cancel event was set."""


class Holding:
    """One caller's hold on one job at a time."""

    def __init__(
        self, engine: "Engine", budget: Budget, holder: str, listener: Listener, cancel: threading.Event
    ) -> None:
        self.engine = engine
        self.budget = budget
        self.holder = holder
        self.listener = listener
        self.cancel = cancel
        self._held: Job | None = None
        self._renewed = 0.0

    def take(self, job: Job) -> None:
        """Announce the job to the sweep and take its lease."""
        now = self.engine.clock()
        self.engine.records.hold(job.place, job.name, self.holder, now)
        self.engine.records.activate(job, now)
        self._held, self._renewed = job, now

    def drop(self) -> None:
        """Renew the lease no longer."""
        self._held = None

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

    def pause(self, seconds: float) -> None:
        """Wait; renew the lease meanwhile. The waiting loop itself renews it, since a lease says that somebody watches.

        Canceled when the caller's event is set.
        """
        until = self.engine.clock() + seconds
        while True:
            if self.cancel.is_set():
                raise Canceled
            self._renew()
            left = until - self.engine.clock()
            if left <= 0:
                return
            self.engine.pause(min(left, 1.0))

    def _renew(self) -> None:
        """Renew the lease if it is ours or nobody's; another run that has attached since keeps it while it lives."""
        now = self.engine.clock()
        if self._held is None or now - self._renewed < RENEW_SECONDS:
            return
        self._renewed = now
        job = self._held
        lease = self.engine.records.lease(job.place, job.name)
        if lease is None or lease.holder == self.holder or lease.lapsed(now):
            self.engine.records.hold(job.place, job.name, self.holder, now)
