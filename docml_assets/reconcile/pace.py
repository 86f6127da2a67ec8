"""Progress that people can read: a bar now and then, a line with rate and time left every few seconds."""

import time
from collections.abc import Callable

BAR_SECONDS = 0.2
LOG_SECONDS = 10.0


class Pace:
    """Counts units of one stage. `tick` is cheap: most calls only add one."""

    def __init__(
        self, what: str, total: int, log: Callable[[str], None], progress: Callable[[str, int, int], None]
    ) -> None:
        self.what, self.total, self.log, self.progress = what, total, log, progress
        self.done = 0
        self.started = time.monotonic()
        self._bar = self._logged = self.started
        progress(what, 0, total)

    def tick(self) -> None:
        """One unit done. Not for several threads at once."""
        self.done += 1
        now = time.monotonic()
        if now - self._bar < BAR_SECONDS and self.done < self.total:
            return
        self._bar = now
        self.progress(self.what, self.done, self.total)
        if now - self._logged >= LOG_SECONDS and self.done < self.total:
            self._logged = now
            rate = self.rate
            left = (self.total - self.done) / rate if rate else 0.0
            self.log(f"{self.what}: {self.done:,} of {self.total:,}, {rate:,.0f} a second, {left:,.0f} s left")

    @property
    def rate(self) -> float:
        """Units a second so far."""
        seconds = time.monotonic() - self.started
        return self.done / seconds if seconds > 0 else 0.0
