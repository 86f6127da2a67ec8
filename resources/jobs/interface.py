"""What callers see of jobs, what jobs cost, and the exceptions; their tree is drawn in `resources/jobs/__init__.py`."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from docml_contract.jobs import Compute, JobSpec
from docml_contract.manifests import JobOutput
from resources.errors import ResourceError, SettingError


class Listener(Protocol):
    """What a waiting side wants to be told. All methods must be cheap; whatever they raise stops the job."""

    def line(self, host: str, text: str) -> None:
        """An ordinary line of a host's (or a trial's) log."""

    def event(self, event: dict[str, Any]) -> None:
        """A parsed line of `docml_contract.log_lines`."""

    def status(self, text: str) -> None:
        """A sentence on where the job stands: "Starting", "attached to the running job …"."""


@dataclass(frozen=True)
class JobResult:
    """A completed job. Its output is staged: publish it, then it may go."""

    name: str
    attempt: int
    launched: bool  # False: attached to a running job, or took a completed one
    output_prefix: str  # store key of the staged output
    output: JobOutput
    started_at: str  # UTC, ISO 8601
    ended_at: str
    seconds: float
    billable_seconds: float | None
    cost_usd: float | None
    links: Mapping[str, str]  # title -> URL or path: log, console


@dataclass(frozen=True)
class Orphan:
    """A running job that nobody waits for."""

    name: str
    experiment: str
    run: int
    step: str
    model: str | None
    attempt: int
    holder: str  # the Dagster run that last held its lease
    reason: str  # a sentence: why nobody waits for it


class Jobs(Protocol):
    """Runs jobs exactly once; implemented by `resources.jobs.engine.engine.Engine`."""

    def run(
        self,
        spec: JobSpec,
        files: Mapping[str, bytes],
        *,
        holder: str,
        listener: Listener,
        cancel: threading.Event | None = None,
    ) -> JobResult:
        """Start the job, attach to it or take its result, and return when it has completed.

        files: content of the `spec` channel, whose sha256 the spec names; spec.json is added. holder: the Dagster run.
        cancel: set it from another thread to stop the job and end in JobStopped; in this thread any BaseException
        (Dagster's interrupt, Ctrl-C) does so.
        Raises JobFailed, JobStopped, JobRefused, CostTooHigh, JobUnreachable.
        """

    def orphans(self, was_canceled: Callable[[str], bool], damage: list[str]) -> list[Orphan]:
        """Running jobs for which nobody comes back.

        Their Dagster run was canceled by `was_canceled(run id)`, or gave the job up, or nobody has renewed the lease for 15 minutes.
        The job of a run that was killed, or failed, goes on until then: whoever runs the same again attaches to it.
        damage: gets what cannot be read; the job of which it tells is left alone.
        """

    def stop(self, orphan: Orphan) -> None:
        """Ask an orphan to stop, unless somebody has come to wait for it meanwhile."""


class JobError(ResourceError):
    """A job could not be run, followed or completed."""


class JobRefused(JobError):
    """The job was not started: something that was asked for is wrong, and the message names it."""


class JobElsewhere(JobRefused):
    """The job was started in another account or region than the one that is asked now."""


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
        more = [line for line in self.last_lines if not reason or reason not in line]  # what is said is not said again
        lines = "".join(f"\n  | {line}" for line in more)
        where = "".join(f"\n  {title}: {link}" for title, link in self.links.items())
        super().__init__(f"job {name}: {reason}{lines}{where}")


class JobStopped(JobFailed):
    """The job was stopped: by someone, or because it ran into MaxRuntime or MaxWait."""


SECONDS_AN_HOUR = 3600.0
_PRICES = TypeAdapter(dict[str, Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]])


def read_prices(environment: Mapping[str, str]) -> dict[str, float]:
    """DOCML_PRICES: a JSON object of instance type -> USD an hour; {} if unset. SettingError."""
    text = environment.get("DOCML_PRICES")
    if not text:
        return {}
    try:
        return _PRICES.validate_json(text)
    except ValidationError as error:
        raise SettingError(
            f'DOCML_PRICES: expected JSON such as {{"ml.g5.xlarge": 1.408}} (USD an hour), found {text[:80]!r}'
        ) from error


def cost(compute: Compute, prices: Mapping[str, float], billable_seconds: float | None) -> float | None:
    """USD for `billable_seconds` of every host; none if the price or the time is unknown."""
    price = prices.get(compute.instance_type)
    if price is None or billable_seconds is None:
        return None
    return price * compute.instance_count * billable_seconds / SECONDS_AN_HOUR


def most(compute: Compute, prices: Mapping[str, float], jobs: int = 1) -> float | None:
    """USD if each of so many jobs runs into its time limit and its warm pool is never used again; spot counts in full."""
    single = cost(compute, prices, compute.max_runtime_seconds + (compute.keep_alive_seconds or 0))
    return single * jobs if single is not None else None


def worst_case(spec: JobSpec, prices: Mapping[str, float]) -> float | None:
    """The most that a job, or all trials of a search, can cost, in USD; none if the price is unknown."""
    return most(spec.compute, prices, spec.tuning.max_jobs if spec.tuning else 1)


def check_cost(spec: JobSpec, prices: Mapping[str, float]) -> None:
    """Refuse a job whose worst case exceeds MAX_COST_USD. CostTooHigh."""
    limit = spec.compute.max_cost_usd
    worst = worst_case(spec, prices)
    if limit is None or worst is None or worst <= limit:
        return
    compute = spec.compute
    trials = f"{spec.tuning.max_jobs} trials x " if spec.tuning else ""
    raise CostTooHigh(
        f"{spec.step} of {spec.experiment} run {spec.run} may cost {worst:.2f} USD ({trials}{compute.instance_count} x "
        f"{compute.instance_type} for {compute.max_runtime_seconds} s), MAX_COST_USD is {limit:g}: "
        "lower MAX_RUNTIME_SECONDS, INSTANCE_TYPE or INSTANCE_COUNT of the step, or raise MAX_COST_USD"
    )
