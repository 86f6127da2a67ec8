"""SIGTERM: spot loss, a stopped job, a cancelled run. Every command ends with exit code 143, and its workers with it.

A training goes on to its next optimizer step and leaves a checkpoint; a preparation and an inference leave nothing.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STOPPED = 128 + signal.SIGTERM  # 143: stopped, neither done nor failed


class StopSignal:
    """Outside `deferred()` there is nothing worth saving, and SIGTERM ends the process at once; inside it waits to be asked."""

    def __init__(self) -> None:
        self.requested = False
        self._deferring = False
        signal.signal(signal.SIGTERM, self._received)

    def _received(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferring:
            stop("before there was anything to save")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While the block runs, a signal is only noted, for the block to ask for."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False


def stop(where: str) -> None:
    """End the process as stopped."""
    print(f"Stopped by SIGTERM {where}.", flush=True)
    sys.exit(EXIT_STOPPED)
