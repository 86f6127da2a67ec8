"""What a running step says to the terminal, beside what it says to Dagster's log: bars and colours on a terminal, plain lines elsewhere.

The command line executes runs in its own process: it puts a `Display` in place and the assets speak to it. Under the UI nothing is
in place and nothing is shown.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from docml_assets.terminal import console
from docml_contract.plain_text import plain, plain_line

SECONDS_BETWEEN_PLAIN_PROGRESS = 5.0
LINE_CHARACTERS = 2_000  # of a job's log line; the whole of it is in the log
MOST_BARS = 8  # of one step: a job names what it counts


class Display:
    """Shows what happens in a run; this one shows nothing. Called from several threads; must not raise."""

    def started(self, asset: str) -> None:
        """A step begins."""

    def said(self, asset: str, text: str) -> None:
        """A sentence of the step itself."""

    def job_line(self, asset: str, model: str | None, text: str) -> None:
        """A log line of a job."""

    def progressed(self, asset: str, what: str, done: int, total: int | None) -> None:
        """`done` of `total` items (None: not known) of `what`."""

    def epoch(self, asset: str, model: str | None, event: dict[str, Any]) -> None:
        """An epoch ended; `event` holds its metrics (`docml_contract.log_lines`)."""

    def finished(self, asset: str, text: str) -> None:
        """A step has ended; `text` says how."""


def make_display(*, verbose: bool) -> "PlainDisplay | TerminalDisplay":
    """Bars where stdout is a terminal, else lines. `verbose` shows the jobs' own log lines as well."""
    if sys.stdout.isatty():
        return TerminalDisplay(verbose=verbose)
    return PlainDisplay(sys.stdout, verbose=verbose)


def epoch_scores(event: dict[str, Any]) -> dict[str, float]:
    """What an epoch came to, as people name it."""
    names = {
        "train_loss": "train loss",
        "valid_loss": "valid loss",
        "valid_accuracy": "accuracy",
        "valid_f1": "macro-F1",
    }
    # The bare names carry the best epoch so far, as tuners want it.
    found = {name: event.get(f"{key}_epoch", event.get(key)) for key, name in names.items()}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def epoch_text(model: str | None, event: dict[str, Any]) -> str:
    """One line for an epoch."""
    values = [f"{name} {value:.3f}" for name, value in epoch_scores(event).items()]
    total = f" of {event['epochs']}" if isinstance(event.get("epochs"), int) else ""
    return f"{f'{model}: ' if model else ''}epoch {event.get('epoch', '?')}{total}: {', '.join(values)}"


def log_line(model: str | None, text: str) -> str:
    """A job's log line as it is shown: one line, and not endless."""
    line = f"{f'[{model}] ' if model else ''}{text}"
    cut = f" … ({len(line) - LINE_CHARACTERS:,} characters more)" if len(line) > LINE_CHARACTERS else ""
    return plain_line(f"{line[:LINE_CHARACTERS]}{cut}")


class PlainDisplay(Display):
    """One line for everything that is said; progress every few seconds."""

    def __init__(self, stream: TextIO, *, verbose: bool) -> None:
        self._stream = stream
        self._verbose = verbose
        self._started: dict[str, float] = {}
        self._shown: dict[tuple[str, str], float] = {}
        self._complete: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> "PlainDisplay":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.flush()

    def _print(self, asset: str, text: str) -> None:
        with self._lock:
            print(plain(f"{asset}: {text}"), file=self._stream, flush=True)

    def started(self, asset: str) -> None:
        """Only the time is noted."""
        self._started[asset] = time.monotonic()

    def said(self, asset: str, text: str) -> None:
        """One line."""
        self._print(asset, text)

    def job_line(self, asset: str, model: str | None, text: str) -> None:
        """One line, where all are asked for."""
        if self._verbose:
            self._print(asset, f"  | {log_line(model, text)}")

    def progressed(self, asset: str, what: str, done: int, total: int | None) -> None:
        """One line every few seconds, and one when all is done."""
        now = time.monotonic()
        complete = done == total and (asset, what) not in self._complete
        if complete or now - self._shown.get((asset, what), 0.0) >= SECONDS_BETWEEN_PLAIN_PROGRESS:
            self._shown[asset, what] = now
            self._complete |= {(asset, what)} if complete else set()
            self._print(asset, f"{what}: {done}{f' of {total}' if total else ''}")

    def epoch(self, asset: str, model: str | None, event: dict[str, Any]) -> None:
        """One line."""
        self._print(asset, epoch_text(model, event))

    def finished(self, asset: str, text: str) -> None:
        """One line with the seconds that the step took."""
        seconds = time.monotonic() - self._started.get(asset, time.monotonic())
        self._print(asset, f"{text} ({seconds:.1f} s)")


class TerminalDisplay(Display):
    """A bar for the step at work, what it says above."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._console = console()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[line]}", style="dim", markup=False),
            console=self._console,
            transient=True,
        )
        self._live: Live = self._progress.live
        self._tasks: dict[tuple[str, str], Any] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> "TerminalDisplay":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def _print(self, mark: str, style: str, asset: str, text: str) -> None:
        self._console.print(Text.assemble((f"{mark} ", style), (f"{asset:<23} ", "bold"), text), soft_wrap=True)

    def started(self, asset: str) -> None:
        """The step's bar appears."""
        self._started[asset] = time.monotonic()
        self._task(asset, asset, None)

    def _task(self, asset: str, what: str, total: int | None) -> Any:
        key = (asset, what)
        if key not in self._tasks and sum(each[0] == asset for each in self._tasks) >= MOST_BARS:
            key, what = (asset, "…"), "…"
        if key not in self._tasks:
            shown = asset if what == asset else f"  {plain_line(what[:60])}"
            self._tasks[key] = self._progress.add_task(shown, total=total, line="")
        return self._tasks[key]

    def said(self, asset: str, text: str) -> None:
        """A line above the bars."""
        self._print("·", "dim", asset, text)

    def job_line(self, asset: str, model: str | None, text: str) -> None:
        """A line above the bars where all are asked for, else the end of the step's bar."""
        if self._verbose:
            self._console.print(Text(f"    {log_line(model, text)}", style="dim"), soft_wrap=True)
        else:
            self._progress.update(self._task(asset, asset, None), line=plain_line(text[:60]))

    def progressed(self, asset: str, what: str, done: int, total: int | None) -> None:
        """The bar of `what`."""
        self._progress.update(self._task(asset, what, total), completed=done, total=total)

    def epoch(self, asset: str, model: str | None, event: dict[str, Any]) -> None:
        """A line above the bars."""
        self._print("·", "dim", asset, epoch_text(model, event))

    def finished(self, asset: str, text: str) -> None:
        """The step's bars give way to a line with the seconds that it took."""
        seconds = time.monotonic() - self._started.get(asset, time.monotonic())
        for key in [key for key in self._tasks if key[0] == asset]:
            self._progress.remove_task(self._tasks.pop(key))
        self._print("✓", "green", asset, f"{text} ({seconds:.1f} s)")


_in_place: list[Display] = [Display()]


def display() -> Display:
    """The display that is in place."""
    return _in_place[-1]


@contextmanager
def shown_on(target: Display) -> Iterator[None]:
    """Put a display in place for the runs that this process executes meanwhile."""
    _in_place.append(target)
    try:
        yield
    finally:
        _in_place.remove(target)
