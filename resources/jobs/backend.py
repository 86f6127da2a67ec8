"""What the engine asks of a backend, and what a backend answers.

A backend never waits and never tries again: it says `Busy`, `NoCapacity` or `NameTaken`, and the engine decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from docml_contract.base import short
from docml_contract.jobs import JobSpec
from docml_contract.log_lines import NONCE_VARIABLE
from docml_contract.names import RunPlace, job_name

# Why a job ended without success: by its own fault (the same again would fail the same), for want of machines, because a
# machine or the service failed, at a time limit, by somebody's Stop, or by the sweep for orphans.
Cause = Literal["work", "capacity", "lost", "time", "stopped", "swept"]
Status = Literal["InProgress", "Stopping", "Completed", "Failed", "Stopped"]
ENDED = ("Completed", "Failed", "Stopped")


class Busy(Exception):
    """Ask again later: throttled, a server error, a broken connection. What was asked may or may not have been done."""


class NoCapacity(Exception):
    """The job was not created because no machine is to be had now."""


class NameTaken(Exception):
    """A job of this name exists already."""


@dataclass(frozen=True)
class Job:
    """One attempt at a spec: its name and its places in the store."""

    spec: JobSpec
    attempt: int
    name: str
    nonce: str = (
        ""  # by which the job's events are known from what user code prints; none for jobs of before there were any
    )
    where: str = ""  # the account and region of its record, which `observe` compares; none where no record names any

    @property
    def request_variables(self) -> dict[str, str]:
        """What the job's environment carries besides the deployment's own; none of it is read from the store when the job is created."""
        nonce = {NONCE_VARIABLE: self.nonce} if self.nonce else {}
        return {**self.spec.request_variables, **nonce}

    @classmethod
    def plan(cls, spec: JobSpec, attempt: int, store_url: str) -> "Job":
        """The attempt's job, with its derived name."""
        step = spec.step if spec.piece is None else f"{spec.step}-{spec.piece}"
        name = job_name(spec.kind, store_url, spec.experiment, spec.run, step, spec.model, attempt)
        return cls(spec, attempt, name)

    @property
    def place(self) -> RunPlace:
        """The run that it works for."""
        return RunPlace(self.spec.experiment, self.spec.run)

    @property
    def folder(self) -> str:
        """Store prefix of what belongs to this job."""
        return self.place.job_folder(self.name)

    @property
    def spec_prefix(self) -> str:
        """Where the files of the `spec` channel lie."""
        return f"{self.folder}/spec"

    @property
    def output_prefix(self) -> str:
        """Below which the job leaves its output."""
        return f"{self.folder}/output"

    @property
    def keeps_checkpoints(self) -> bool:
        """Trainings keep their state, preparations and predictions the parts that are finished."""
        return self.spec.kind != "processing" or self.spec.step in ("preparation", "prediction")

    @property
    def checkpoints(self) -> str:
        """Shared by all attempts at the same work; for jobs that keep checkpoints."""
        if self.spec.step == "prediction":
            assert self.spec.piece is not None
            return self.place.finished_parts(self.spec.piece)
        if self.spec.step == "preparation":
            return f"{self.place.encoded_parts}/{short(self.spec.spec_hash)}"
        assert self.spec.model is not None
        return self.place.checkpoints(self.spec.model, self.spec.spec_hash)


@dataclass(frozen=True)
class JobState:
    """A job as its backend sees it now."""

    status: Status
    phases: tuple[str, ...] = ()  # for people, so far: "Downloading", "Training"
    reason: str = ""
    cause: Cause = "work"
    started_at: str = ""  # UTC, ISO 8601; empty: not yet
    ended_at: str = ""
    seconds: float = 0.0
    billable_seconds: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the status is a final one."""
        return self.status in ENDED


@dataclass(frozen=True)
class LogLine:
    """One line of a host's (or a trial's) log."""

    host: str
    text: str


Cursor = dict[str, Any]


class Backend(Protocol):
    """SageMaker, or this machine. Any method may raise Busy or JobUnreachable."""

    @property
    def name(self) -> str:
        """`local` or `sagemaker`, for people and records."""

    @property
    def poll_seconds(self) -> float:
        """Between two looks at a running job."""

    @property
    def log_settle_seconds(self) -> float:
        """How long log lines may come in after the job has ended."""

    @property
    def stop_seconds(self) -> float:
        """Within which a job that was told to stop has stopped."""

    def where(self) -> str:
        """The account and region, or the machine, that jobs run in now."""

    def check(self, spec: JobSpec) -> None:
        """Refuse what would be refused later, before anything is written. JobRefused."""

    def request(self, job: Job) -> dict[str, Any]:
        """What will be asked; kept in the job's record. Holds no secret."""

    def stage(self, job: Job) -> None:
        """Write what the job reads besides the spec channel. May be called again."""

    def create(self, job: Job) -> None:
        """Start the job. NameTaken, NoCapacity, JobRefused."""

    def spec_hash(self, job: Job) -> str | None:
        """The spec hash that an existing job of this name was started with; none if it carries none."""

    def observe(self, job: Job) -> JobState | None:
        """The job's state; none: no job of this name is visible. JobElsewhere if it belongs to another account or region."""

    def logs(self, job: Job, cursor: Cursor) -> list[LogLine]:
        """Lines since the last call with this cursor, which starts empty and is moved on; from the start of the log."""

    def stop(self, job: Job) -> None:
        """Ask the job to stop; none of this name, or one that has ended, is no error."""

    def collect(self, job: Job) -> str:
        """Where a completed job's output lies: the key prefix of OUTPUT.json. May be called again."""

    def links(self, job: Job) -> Mapping[str, str]:
        """Where people look further: title -> URL or path."""
