"""Lines that a job prints for its orchestrator, between the ordinary lines that people read: events, and metrics.

They travel as log text because that is the one channel that a subprocess, a container and CloudWatch share.

    DOCML 5f1c… {"event": "epoch", …}                    an event, for docml's own orchestrator; the word is the job's nonce
    docml: valid_f1=0.8312; valid_f1_epoch=0.81; …       the metrics after an epoch, for a tuner's regular expressions

A tuner ranks trials by the *latest* value it read, so a plain metric name carries the value of the best epoch so far, which is the
model that will be kept; `<name>_epoch` carries the epoch's own.

User code prints into the same log, and a document's text may be among what it prints. Only a line with the job's nonce is an event; the
trainer takes the nonce out of its environment before it loads user code. What an event says is bounded all the same: code in the
trainer's own process could find the nonce.
"""

import json
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from docml_contract.plain_text import plain_line

EVENT_PREFIX = "DOCML "
METRICS_PREFIX = "docml: "
NONCE_VARIABLE = "DOCML_EVENTS"
MAX_EVENT = 16 << 10  # characters of a line
MAX_TEXT = 500  # of a text in an event
MAX_NUMBER = 2.0**53
_nonce = ""  # of this process's job

EPOCH = "epoch"  # epoch, train_loss, valid_loss, valid_accuracy, valid_f1_epoch, valid_f1, learning_rate, examples_per_second …
PROGRESS = "progress"  # what, done, total, unit
FACTS = "facts"  # small results worth showing as metadata
TRACKING = "tracking"  # url

KEPT_METRICS = ("valid_f1", "valid_accuracy", "valid_loss")  # of the best epoch so far
EPOCH_METRICS = (*(f"{name}_epoch" for name in KEPT_METRICS), "train_loss")
TRAINER_METRICS = (*KEPT_METRICS, *EPOCH_METRICS)


def take_nonce(environment: MutableMapping[str, str]) -> None:
    """Begin this process's events with the nonce of its environment, which nobody finds there any more."""
    global _nonce
    _nonce = environment.pop(NONCE_VARIABLE, "")


def nonce_for_children() -> dict[str, str]:
    """The variable by which processes that print events for this one's job get its nonce."""
    return {NONCE_VARIABLE: _nonce} if _nonce else {}


def format_event(event: str, **fields: Any) -> str:
    """The line for an event; values must be JSON (no NaN)."""
    return _beginning(_nonce) + json.dumps({"event": event, **fields}, allow_nan=False)


def parse_event(line: str, nonce: str = "") -> dict[str, Any] | None:
    """The event in a log line of the job with this nonce, or None for ordinary text. Texts and numbers are bounded, whatever it says."""
    beginning = _beginning(nonce)
    if not line.startswith(beginning) or len(line) > MAX_EVENT:
        return None
    try:
        tame = _bounded(json.loads(line[len(beginning) :]))
    except (ValueError, RecursionError):
        return None
    if not isinstance(tame, dict) or not isinstance(tame.get("event"), str):
        return None
    total = tame.get("total")
    if tame["event"] == PROGRESS and not (_is_count(tame.get("done")) and (total is None or _is_count(total))):
        return None
    return tame


def _beginning(nonce: str) -> str:
    return f"{EVENT_PREFIX}{nonce} " if nonce else EVENT_PREFIX


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return plain_line(value[:MAX_TEXT])
    if isinstance(value, dict):
        return {plain_line(key[:MAX_TEXT]): _bounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_bounded(each) for each in value]
    if isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:  # NaN is neither
        return None
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


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
    return METRICS_PREFIX + "; ".join(f"{name}={value!r}" for name, value in values.items())


def metric_regex(name: str) -> str:
    """Reads one metric of `metric_line`; one capture group, as SageMaker asks."""
    return rf"docml: .*\b{name}=([-+0-9.eE]+)"


# (name, regex) of everything that the trainer prints: what METRIC_DEFINITIONS defaults to.
METRIC_DEFINITIONS = tuple((name, metric_regex(name)) for name in TRAINER_METRICS)
