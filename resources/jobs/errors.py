"""Exceptions of jobs; the tree is drawn in `resources/jobs/__init__.py`."""

from collections.abc import Mapping, Sequence

from resources.errors import ResourceError


class JobError(ResourceError):
    """A job could not be run, followed or completed."""


class JobRefused(JobError):
    """The job was not started: something that was asked for is wrong, and the message names it."""


class CostTooHigh(JobRefused):
    """The worst case of the job costs more than MAX_COST_USD."""


class JobUnreachable(JobError):
    """The service could not be asked for longer than the budget allows. A job that runs goes on; a new run attaches to it."""


class JobFailed(JobError):
    """The job ended without success. `reason` is the job's own, `last_lines` the end of its log."""

    def __init__(
        self, name: str, reason: str, *, last_lines: Sequence[str] = (), links: Mapping[str, str] | None = None
    ):
        self.name = name
        self.reason = reason
        self.last_lines = tuple(last_lines)
        self.links = dict(links or {})
        lines = "".join(f"\n  | {line}" for line in self.last_lines)
        where = "".join(f"\n  {title}: {link}" for title, link in self.links.items())
        super().__init__(f"job {name}: {reason}{lines}{where}")


class JobStopped(JobFailed):
    """The job was stopped: by someone, or because it ran into MaxRuntime or MaxWait."""
