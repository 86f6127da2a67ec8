"""The one place that decides whether something is tried again, and when. Clients below it do not retry by themselves."""

import random
from collections.abc import Callable

from resources.jobs.backend import JobState
from resources.jobs.interface import JobUnreachable

# How often one Dagster run may start a job for the same work again after a machine or the service failed.
MAX_ATTEMPTS = 3
# How long one call waits for machines, and how long for a service that does not answer.
CAPACITY_SECONDS = 2 * 3600.0
BUSY_SECONDS = 15 * 60.0


class Budget:
    """The patience of one call of `Jobs.run`. Waits grow from attempt to attempt and are jittered."""

    def __init__(self, clock: Callable[[], float], jitter: random.Random) -> None:
        self._clock = clock
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
            self._capacity_since = self._clock()
        if self._clock() - self._capacity_since > CAPACITY_SECONDS:
            return None
        self._capacity_tries += 1
        return self._wait(30.0, self._capacity_tries, 600.0)

    def answered(self) -> None:
        """The service answers (again)."""
        self._busy_since, self._busy_tries = None, 0

    def busy(self, error: Exception, what: str) -> float:
        """Seconds until the service is asked again; JobUnreachable when that has gone on for too long."""
        if self._busy_since is None:
            self._busy_since = self._clock()
        if self._clock() - self._busy_since > BUSY_SECONDS:
            raise JobUnreachable(
                f"{what}: the service has not answered for {BUSY_SECONDS / 60:.0f} minutes ({error}); "
                "a job that runs goes on: run again to attach to it"
            ) from error
        self._busy_tries += 1
        return self._wait(1.0, self._busy_tries, 30.0)

    def _wait(self, first: float, tries: int, most: float) -> float:
        return min(most, first * 2.0 ** (tries - 1)) * self._jitter.uniform(0.75, 1.25)
