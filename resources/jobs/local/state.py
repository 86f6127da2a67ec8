"""A job on this machine: its folder, what it runs, and its state in the store, which is all that others see of it.

<run>/jobs/<name>.state.json   put-if-absent for the supervisor, then changed by it alone
<run>/jobs/<name>.stop         put by whoever wants the job to stop
<run>/jobs/<name>.log          the log, once the job has ended

<folder>/job.json              what to run
<folder>/state.json            the state once more, should somebody delete it in the store
<folder>/lock                  locked for as long as the supervisor lives
<folder>/base/, logs/          the containers' /opt/ml and logs
"""

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from docml_contract.base import Document, UnreadableDocument
from docml_contract.jobs import JobSpec
from docml_contract.manifests import write_atomically
from resources.errors import MissingKey, ResourceError, UnsafeFile, UnsafeKey
from resources.jobs.backend import ENDED, Cause, Job, Status
from resources.processes import Process
from resources.store import Store

STOP_CHECK_SECONDS = 0.5  # between two looks for a Stop
BEAT_SECONDS = 10.0  # between two signs of life for other machines
LIFE_SECONDS = 5.0  # between two looks for signs of life
QUIET_SECONDS = 60.0  # without a sign of life until that is told
STALL_SECONDS = 15 * 60.0  # and until the job counts as lost
STATE_FILE = "state.json"  # in the supervisor's folder


class Assignment(Document):
    """job.json in the supervisor's folder: what to run."""

    name: str
    attempt: int
    token: str = Field(description="tells this supervisor's claim from a rival's")
    store_url: str
    spec: JobSpec
    nonce: str = Field("", description="of the job's events")
    command: tuple[str, ...] = Field(description="runs the trainer; the step's command is added")


class LocalState(Document):
    """jobs/<name>.state.json."""

    token: str
    process: Process
    folder: str = Field(description="the supervisor's folder on its machine; logs lie in logs/")
    spec_hash: str
    status: Status = "InProgress"
    phases: tuple[str, ...] = Field((), description="sentences for people, so far")
    reason: str = ""
    cause: Cause = "work"
    groups: tuple[int, ...] = Field((), description="process numbers of the containers' first processes")
    started_at: str = ""
    ended_at: str = ""
    seconds: float = 0.0
    beat: float = Field(description="last sign of life, seconds since the epoch")

    @classmethod
    def first(cls, assignment: Assignment, folder: Path, process: Process) -> "LocalState":
        """The state with which a supervisor claims its job."""
        return cls(
            token=assignment.token,
            process=process,
            folder=str(folder),
            spec_hash=assignment.spec.spec_hash,
            beat=time.time(),
        )

    @property
    def ended(self) -> bool:
        """Whether the job has come to its end."""
        return self.status in ENDED


def state_key(job: Job) -> str:
    """Store key of the job's state."""
    return f"{job.folder}.state.json"


def stop_key(job: Job) -> str:
    """Store key whose object asks the job to stop."""
    return f"{job.folder}.stop"


def log_key(job: Job) -> str:
    """Store key of the log of an ended job."""
    return f"{job.folder}.log"


def is_locked(folder: Path) -> bool | None:
    """Whether a supervisor lives that works in the folder; None where there is no such folder here."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def find_running(scratch: Path, job: Job) -> LocalState | None:
    """The state of a job whose supervisor lives in one of these folders, whether the store has it or not."""
    for folder in scratch.glob(f"{job.name}-*"):
        if folder.name.rpartition("-")[0] == job.name and is_locked(folder):
            with contextlib.suppress(OSError):  # it has not claimed the job
                path = folder / STATE_FILE
                return LocalState.from_bytes(path.read_bytes(), str(path))
    return None


class JobEnd(Exception):
    """An end without success."""

    def __init__(self, status: Status, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.cause: Cause = cause
        self.reason = reason


def stopped(cause: Cause, reason: str) -> JobEnd:
    """Somebody asked for a stop, or time is up."""
    return JobEnd("Stopped", cause, reason)


def failed(cause: Cause, reason: str) -> JobEnd:
    """A container failed, or did not do its work."""
    return JobEnd("Failed", cause, reason)


def _replaced() -> JobEnd:
    return stopped("stopped", "stopped: its state was deleted, and another supervisor runs the job since")


class LocalJob:
    """A job as its supervisor runs it. Its state in the store follows, and says that the supervisor lives."""

    def __init__(
        self, folder: Path, assignment: Assignment, store: Store, environment: Mapping[str, str], process: Process
    ) -> None:
        self.folder = folder
        self.store = store
        self.environment = environment
        self.command = assignment.command
        self.job = Job(assignment.spec, assignment.attempt, assignment.name, assignment.nonce)
        self.base = folder / "base"
        self.logs = folder / "logs"
        self.state = LocalState.first(assignment, folder, process)
        self.terminated = False  # SIGTERM came
        self.is_replaced = False  # the state in the store was deleted, and another supervisor has claimed the job since
        self._asked = 0.0
        self._changing = threading.Lock()
        self._over = threading.Event()

    def claim(self) -> bool:
        """Whether this supervisor is the one that runs the job. Whoever started it may have claimed the job for it."""
        if not self.store.put_if_absent(state_key(self.job), self.state.to_bytes()):
            key = state_key(self.job)
            if LocalState.from_bytes(self.store.get(key), self.store.uri(key)).token != self.state.token:
                return False
        self._keep()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        return True

    def begin(self) -> None:
        """The work begins: from now on its time counts."""
        self._change(started_at=self.state.started_at or datetime.now(UTC).isoformat(timespec="seconds"))

    def enter(self, phase: str, *, status: Status = "InProgress") -> None:
        """The next phase, for all to see."""
        started_at = self.state.started_at or datetime.now(UTC).isoformat(timespec="seconds")
        self._change(phases=(*self.state.phases, phase), status=status, started_at=started_at)

    def note_containers(self, pids: list[int]) -> None:
        """The containers that are about to run."""
        self._change(groups=tuple(pids))

    def asked_to_stop(self) -> JobEnd | None:
        """Whether somebody wants the job to end."""
        if self.terminated:
            return stopped("stopped", "stopped: its supervisor was terminated")
        if self.is_replaced:
            return _replaced()
        if time.monotonic() - self._asked > STOP_CHECK_SECONDS:
            self._asked = time.monotonic()
            with contextlib.suppress(ResourceError):
                if self.store.exists(stop_key(self.job)):
                    return stopped("stopped", "stopped on request")
        return None

    def upload(self, output: Path) -> None:
        """Store the job's result. JobEnd if it is one that no store takes: that is the job's own fault, and would happen again."""
        with self._changing:
            if self._has_rival():
                raise _replaced()
        try:
            self.store.upload(output, self.job.output_prefix)
        except (UnsafeFile, UnsafeKey) as error:
            raise failed("work", f"its output cannot be stored: {error}") from error

    def end(self, status: Status, cause: Cause = "work", reason: str = "") -> None:
        """Upload the log, then write the end: whoever sees it finds everything in place. The folder's bulk goes."""
        if self.state.ended:
            return
        with contextlib.suppress(ResourceError):
            if not self.is_replaced:
                self._upload_log()
        self._over.set()
        now = datetime.now(UTC)
        began = datetime.fromisoformat(self.state.started_at) if self.state.started_at else now
        self._change(
            status=status,
            cause=cause,
            reason=reason,
            ended_at=now.isoformat(timespec="seconds"),
            seconds=round((now - began).total_seconds(), 1),
        )
        shutil.rmtree(self.base, ignore_errors=True)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with contextlib.suppress(ResourceError):
                self._change()

    def _change(self, **fields: object) -> None:
        with self._changing:
            if self.state.ended or self._has_rival():
                return
            self.state = self.state.model_copy(update={**fields, "beat": time.time()})
            self.store.put(state_key(self.job), self.state.to_bytes())
            self._keep()

    def _keep(self) -> None:
        with contextlib.suppress(OSError):  # no space: the store has it
            write_atomically(self.folder / STATE_FILE, self.state.to_bytes())

    def _has_rival(self) -> bool:
        """Whether another supervisor has claimed the job: on a machine, or from a Dagster home, that does not see this one. One gives way."""
        key = state_key(self.job)
        with contextlib.suppress(MissingKey, UnreadableDocument):  # what was deleted or damaged is written again
            found = LocalState.from_bytes(self.store.get(key), self.store.uri(key))
            self.is_replaced = self.is_replaced or found.token != self.state.token
        return self.is_replaced

    def _upload_log(self) -> None:
        """One file; with a heading a host (or trial) where there are several."""
        files = [file for file in sorted(self.logs.glob("*.log")) if not file.is_symlink()]
        if len(files) == 1:
            self.store.put_file(log_key(self.job), files[0])
        elif files:
            joined = self.logs / "joined"
            with joined.open("wb") as target:
                for file in files:
                    target.write(f"==> {file.stem} <==\n".encode())
                    with file.open("rb") as source:
                        shutil.copyfileobj(source, target)
            self.store.put_file(log_key(self.job), joined)


class Stillness:
    """For how long nothing has moved in a job's containers: no processor time, no output."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._looked = time.monotonic()
        self._last: object = None
        self._is_told = False

    def look(self, signs_of_life: Callable[[], object]) -> bool:
        """Whether it was time to look. A supervisor that itself stood still counts that time as one look's."""
        elapsed = time.monotonic() - self._looked
        if elapsed < LIFE_SECONDS:
            return False
        self._looked = time.monotonic()
        signs = signs_of_life()
        self.seconds = self.seconds + min(elapsed, 2 * LIFE_SECONDS) if signs == self._last else 0.0
        self._last = signs
        return True

    @property
    def is_stalled(self) -> bool:
        """Whether it has lasted so long that the attempt is given up; the next one resumes."""
        return self.seconds > STALL_SECONDS

    def tell(self) -> list[str]:
        """What people are to be told now: that nothing moves, and that it goes on, once each."""
        was_told, self._is_told = self._is_told, self.seconds > QUIET_SECONDS
        if self._is_told and not was_told:
            return [
                f"{self}: is it stopped (SIGSTOP), or does it wait for something? After {STALL_SECONDS / 60:.0f} minutes it is ended "
                "and resumed"
            ]
        return ["It goes on"] if was_told and not self._is_told else []

    def __str__(self) -> str:
        return f"no processor time and no output for {self.seconds:.0f} s"
