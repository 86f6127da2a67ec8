"""What a running step says to the terminal, beside what it says to Dagster's log.

The command line executes runs in its own process: it puts a `Display` in place and the assets speak to it. Under the UI nothing is
in place and nothing is shown.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Display(Protocol):
    """Shows what happens in a run. Called from several threads; must not raise."""

    def started(self, asset: str) -> None: ...

    def said(self, asset: str, text: str) -> None:
        """A sentence of the step itself."""

    def job_line(self, asset: str, model: str | None, text: str) -> None:
        """A log line of a job."""

    def progressed(self, asset: str, what: str, done: int, total: int | None) -> None: ...

    def epoch(self, asset: str, model: str | None, event: dict[str, Any]) -> None: ...

    def finished(self, asset: str, text: str) -> None: ...


class Silent:
    """Shows nothing."""

    def started(self, asset: str) -> None: ...

    def said(self, asset: str, text: str) -> None: ...

    def job_line(self, asset: str, model: str | None, text: str) -> None: ...

    def progressed(self, asset: str, what: str, done: int, total: int | None) -> None: ...

    def epoch(self, asset: str, model: str | None, event: dict[str, Any]) -> None: ...

    def finished(self, asset: str, text: str) -> None: ...


_in_place: list[Display] = [Silent()]


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
