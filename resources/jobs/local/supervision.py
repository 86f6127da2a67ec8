"""What the detached process of a local job does.

It claims the job in the store (one of several starters wins), lays out the containers, runs them, mirrors the checkpoints,
uploads output and log, enforces MaxRuntime, hears Stop, and writes the job's state, which is all that others see of it:

    <run>/jobs/<name>.state.json   put-if-absent by the supervisor, then changed by it alone
    <run>/jobs/<name>.stop         put by whoever wants the job to stop
    <run>/jobs/<name>.log          the log, once the job has ended
"""

import contextlib
import shutil
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from docml_contract.base import Document
from docml_contract.jobs import JobSpec
from resources.errors import MissingKey, ResourceError, UnsafeFile, UnsafeKey
from resources.jobs.backend import ENDED, Cause, Job, Status
from resources.jobs.local.container import Container, host_names, log_name
from resources.jobs.local.mirror import Mirror
from resources.processes import Process, this_process
from resources.store import Store

TICK_SECONDS = 0.1
LISTEN_SECONDS = 0.5  # between two looks for a Stop
BEAT_SECONDS = 10.0  # between two signs of life for other machines


class Assignment(Document):
    """job.json in the supervisor's folder: what to run."""

    name: str
    attempt: int
    token: str = Field(description="tells this supervisor's claim from a rival's")
    store_url: str
    spec: JobSpec
    command: tuple[str, ...] = Field(description="runs the trainer; the step's command is added")


class LocalState(Document):
    """jobs/<name>.state.json."""

    token: str
    process: Process
    folder: str = Field(description="the supervisor's folder on its machine; logs lie in logs/")
    spec_hash: str
    status: Status = "InProgress"
    phases: tuple[str, ...] = ("Starting",)
    reason: str = ""
    cause: Cause = "work"
    groups: tuple[int, ...] = Field((), description="process groups of the containers")
    started_at: str = ""
    ended_at: str = ""
    seconds: float = 0.0
    beat: float = Field(description="last sign of life, seconds since the epoch")

    @property
    def ended(self) -> bool:
        return self.status in ENDED


def state_key(job: Job) -> str:
    return f"{job.folder}.state.json"


def stop_key(job: Job) -> str:
    return f"{job.folder}.stop"


def log_key(job: Job) -> str:
    return f"{job.folder}.log"


def supervise(folder: Path, environment: Mapping[str, str]) -> None:
    """Run the job of `folder`/job.json to its end, unless another supervisor has claimed it."""
    path = folder / "job.json"
    assignment = Assignment.from_bytes(path.read_bytes(), str(path))
    store = Store.open(assignment.store_url, environment=environment)
    supervisor = Supervisor(folder, assignment, store, environment)
    if supervisor.claim():
        supervisor.run()


class Outcome(Exception):
    """An end without success."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause: Cause = cause
        self.reason = reason


class Stopping(Outcome):
    """Somebody asked for a stop, or time is up."""


class Failing(Outcome):
    """A container failed."""


class Supervisor:
    """One local job."""

    def __init__(self, folder: Path, assignment: Assignment, store: Store, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.store = store
        self.environment = environment
        self.command = assignment.command
        self.job = Job(assignment.spec, assignment.attempt, assignment.name)
        self.base = folder / "base"
        self.logs = folder / "logs"
        self.state = LocalState(
            token=assignment.token,
            process=this_process(),
            folder=str(folder),
            spec_hash=assignment.spec.spec_hash,
            beat=time.time(),
        )
        self._terminated = False
        self._listened = 0.0

    def claim(self) -> bool:
        """Whether this supervisor is the one that runs the job."""
        return self.store.put_if_absent(state_key(self.job), self.state.to_bytes())

    def run(self) -> None:
        """Run the job; its end is in the state, whatever happens short of SIGKILL."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_terminated", True))
        try:
            try:
                self._run()
            except Stopping as stop:
                self._end("Stopped", stop.cause, stop.reason)
            except Failing as failure:
                self._end("Failed", failure.cause, failure.reason)
            except MissingKey as error:
                self._end("Failed", "work", f"an input is missing: {error}")
            except ResourceError as error:
                self._end("Failed", "lost", str(error))
        except Exception as error:
            self._end("Failed", "lost", f"the supervisor failed: {error!r}\n{traceback.format_exc()[-1500:]}")

    def _run(self) -> None:
        if self.job.spec.kind == "tuning":
            from resources.jobs.local.tuning import tune  # optuna is loaded where it is used

            tune(self)
            self._end("Completed")
            return
        names = host_names(self.job.spec)
        containers = [self.container("" if len(names) == 1 else f"host-{i + 1}", i) for i in range(len(names))]
        self.enter("Downloading")
        for container in containers:
            container.lay_out(self.store, self.job.spec.hyperparameters)
        mirror = None
        if containers[0].is_training:
            mirror = Mirror(self.store, containers[0].checkpoints, self.job.checkpoints)
            restored = mirror.restore()
            self.enter(f"Training, with {restored} files of earlier checkpoints" if restored else "Training")
            mirror.start()
        else:
            self.enter("Processing")
        try:
            self.run_containers(containers)
        finally:
            if mirror is not None:
                mirror.stop()
        self._judge(containers)
        self.enter("Uploading")
        for container in containers if not containers[0].is_training else containers[:1]:
            self.upload(container.output)
        self._end("Completed")

    def container(self, folder: str, index: int) -> Container:
        """A host of the job, with its own base folder."""
        return Container(self.job, self.base / folder, self.logs / log_name(index), host_names(self.job.spec), index)

    def upload(self, output: Path) -> None:
        """Store the job's result. Failing if it is one that no store takes: that is the job's own fault, and would happen again."""
        try:
            self.store.upload(output, self.job.output_prefix)
        except (UnsafeFile, UnsafeKey) as error:
            raise Failing("work", f"its output cannot be stored: {error}") from error

    def run_containers(self, containers: list[Container]) -> None:
        """Start all hosts and wait for them. Stopping when told; one host's failure ends the others."""
        try:
            for container in containers:
                container.start(self.command, self.environment)
            self.note_groups([container.group for container in containers])
            self.watch(containers)
        finally:
            for container in containers:
                container.kill()

    def watch(self, containers: list[Container]) -> None:
        """Until all have ended, or one has failed. Stopping: told to, or MaxRuntime; the containers have then ended too."""
        begun = time.monotonic()
        stop: Stopping | None = None
        while True:
            codes = [container.exit_code for container in containers]
            running = any(code is None for code in codes)
            if not running or (stop is None and any(codes)):
                break
            if stop is None:
                stop = self.asked_to_stop() or self._out_of_time(begun)
                if stop is not None:
                    self.enter("Stopping", status="Stopping")
            if stop is not None:
                for container in containers:
                    container.ask_to_stop()
                    container.enforce()
            self.beat()
            time.sleep(TICK_SECONDS)
        if stop is not None:
            raise stop

    def asked_to_stop(self) -> Stopping | None:
        """Whether somebody wants the job to end."""
        if self._terminated:
            return Stopping("stopped", "stopped: its supervisor was terminated")
        if time.monotonic() - self._listened > LISTEN_SECONDS:
            self._listened = time.monotonic()
            with contextlib.suppress(ResourceError):
                if self.store.exists(stop_key(self.job)):
                    return Stopping("stopped", "stopped on request")
        return None

    def _out_of_time(self, begun: float) -> Stopping | None:
        limit = self.job.spec.compute.max_runtime_seconds
        if time.monotonic() - begun <= limit:
            return None
        return Stopping("time", f"MaxRuntimeExceeded: stopped after {limit} s; raise MAX_RUNTIME_SECONDS of the step")

    def _judge(self, containers: list[Container]) -> None:
        """Failing for containers that did not succeed: the first with a reason of its own speaks."""
        failed = [c for c in containers if c.exit_code] or [c for c in containers[:1] if not c.complete]
        if failed:
            speaker = next((c for c in failed if c.has_reason), failed[0])
            raise Failing("lost" if all(c.was_killed for c in failed) else "work", speaker.reason())

    # -- state

    def enter(self, phase: str, *, status: Status = "InProgress") -> None:
        """The next phase, for all to see."""
        started_at = self.state.started_at or datetime.now(UTC).isoformat(timespec="seconds")
        self._change(phases=(*self.state.phases, phase), status=status, started_at=started_at)

    def note_groups(self, groups: Sequence[int]) -> None:
        """The process groups that must end with the job."""
        self._change(groups=tuple(groups))

    def beat(self) -> None:
        """A sign of life."""
        if time.time() - self.state.beat > BEAT_SECONDS:
            with contextlib.suppress(ResourceError):
                self._change()

    def _end(self, status: Status, cause: Cause = "work", reason: str = "") -> None:
        """Upload the log, then write the end: whoever sees it finds everything in place. The folder's bulk goes."""
        if self.state.ended:
            return
        with contextlib.suppress(ResourceError):
            self._upload_log()
        now = datetime.now(UTC)
        began = datetime.fromisoformat(self.state.started_at) if self.state.started_at else now
        self._change(
            status=status,
            phases=(*self.state.phases, status),
            cause=cause,
            reason=reason,
            ended_at=now.isoformat(timespec="seconds"),
            seconds=round((now - began).total_seconds(), 1),
        )
        shutil.rmtree(self.base, ignore_errors=True)

    def _change(self, **fields: object) -> None:
        self.state = self.state.model_copy(update={**fields, "beat": time.time()})
        self.store.put(state_key(self.job), self.state.to_bytes())

    def _upload_log(self) -> None:
        """One file; with a heading a host (or trial) where there are several."""
        files = sorted(self.logs.glob("*.log"))
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
