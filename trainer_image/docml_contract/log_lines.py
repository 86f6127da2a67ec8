"""Lines that a job prints for its orchestrator, between the ordinary lines that people read: events, and metrics.

They travel as log text because that is the one channel that a subprocess, a container and CloudWatch share.

    DOCML {"event": "epoch", …}                          an event, for docml's own orchestrator
    docml: valid_f1=0.8312; valid_f1_epoch=0.81; …       the metrics after an epoch, for a tuner's regular expressions

A tuner ranks trials by the *latest* value it read, so a plain metric name carries the value of the best epoch so far, which is the
model that will be kept; `<name>_epoch` carries the epoch's own.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

EVENT_PREFIX = "DOCML "

EPOCH = "epoch"  # epoch, train_loss, valid_loss, valid_accuracy, valid_f1_epoch, valid_f1, learning_rate, examples_per_second …
PROGRESS = "progress"  # what, done, total, unit
FACTS = "facts"  # small results worth showing as metadata
TRACKING = "tracking"  # url

KEPT_METRICS = ("valid_f1", "valid_accuracy", "valid_loss")  # of the best epoch so far
EPOCH_METRICS = (*(f"{name}_epoch" for name in KEPT_METRICS), "train_loss")
TRAINER_METRICS = (*KEPT_METRICS, *EPOCH_METRICS)


def format_event(event: str, **fields: Any) -> str:
    """The line for an event; values must be JSON (no NaN)."""
    return EVENT_PREFIX + json.dumps({"event": event, **fields}, allow_nan=False)


def parse_event(line: str) -> dict[str, Any] | None:
    """The event in a log line, or None for ordinary text."""
    if not line.startswith(EVENT_PREFIX):
        return None
    try:
        event = json.loads(line[len(EVENT_PREFIX) :])
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


def metric_line(values: Mapping[str, float]) -> str:
    """The line for `values`, in full precision (`1e-05` where repr writes it so)."""
    return "docml: " + "; ".join(f"{name}={value!r}" for name, value in values.items())


def metric_regex(name: str) -> str:
    """Reads one metric of `metric_line`; one capture group, as SageMaker asks."""
    return rf"docml: .*\b{name}=([-+0-9.eE]+)"


# (name, regex) of everything that the trainer prints: what METRIC_DEFINITIONS defaults to.
METRIC_DEFINITIONS = tuple((name, metric_regex(name)) for name in TRAINER_METRICS)
