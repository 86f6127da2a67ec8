"""Lines that a job prints for its orchestrator, between the ordinary lines that people read.

An event is one line, `DOCML {"event": "epoch", …}`. It travels as log text because that is the one channel that a laptop
subprocess, a container and CloudWatch share.
"""

import json
import time
from typing import Any

PREFIX = "DOCML "

EPOCH = "epoch"  # epoch, train_loss, valid_loss, valid_accuracy, valid_f1_epoch, valid_f1, learning_rate, examples_per_second …
PROGRESS = "progress"  # what, done, total, unit
FACTS = "facts"  # small results worth showing as metadata
TRACKING = "tracking"  # url


def format_event(event: str, **fields: Any) -> str:
    """The line for an event; values must be JSON (no NaN)."""
    return PREFIX + json.dumps({"event": event, **fields}, allow_nan=False)


def parse_event(line: str) -> dict[str, Any] | None:
    """The event in a log line, or None for ordinary text."""
    if not line.startswith(PREFIX):
        return None
    try:
        event = json.loads(line[len(PREFIX) :])
    except json.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


class ProgressEvents:
    """A progress event now and then, while a job works through `total` items."""

    def __init__(self, what: str, total: int, unit: str, *, seconds_between: float) -> None:
        self.what, self.total, self.unit, self.seconds_between = what, total, unit, seconds_between
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last event, or the start, is long enough ago."""
        return time.monotonic() - self._last >= self.seconds_between

    def print(self, done: int) -> None:
        """Print the event that `done` items are done."""
        self._last = time.monotonic()
        print(format_event(PROGRESS, what=self.what, done=done, total=self.total, unit=self.unit), flush=True)
