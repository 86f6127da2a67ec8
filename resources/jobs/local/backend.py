"""Jobs on this machine: every job a detached supervisor process with containers of its own, over the same folders as in SageMaker.

The supervisor outlives the orchestrator; a restarted one finds the job's state in the store and attaches.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docml_contract.jobs import JobSpec
from docml_contract.sandbox import make_unreadable
from docml_contract.untrusted_files import open_left
from resources.errors import MissingKey
from resources.jobs.backend import Cursor, Job, JobState, LogLine, NameTaken
from resources.jobs.interface import JobRefused
from resources.jobs.local.container import BASE_VARIABLE, unusable_folder
from resources.jobs.local.state import Assignment, LocalState, find_running, is_locked, log_key, state_key, stop_key
from resources.processes import booted_at, kill_marked, process_here, start_detached
from resources.store import Store

# A supervisor that cannot be seen from here, and shows no sign of life for this long, has died with its machine.
SILENCE_SECONDS = 90.0
# One that can be seen, and lives, is told after as long; it is ended when it has been watched standing still for this long.
STALL_SECONDS = 15 * 60.0
OLD_SECONDS = 14 * 24 * 3600.0


def local_backend(store: Store, environment: Mapping[str, str]) -> "LocalBackend":
    """Jobs on this machine. The trainer runs under DOCML_WORKER_PYTHON (this interpreter)."""
    python = environment.get("DOCML_WORKER_PYTHON") or sys.executable
    return LocalBackend(store, environment, [python, "-m", "docml_trainer"])


def scratch_folder(environment: Mapping[str, str]) -> Path:
    """Where supervisors work: $DAGSTER_HOME/jobs, else a folder of this user's among the temporary files."""
    home = environment.get("DAGSTER_HOME")
    return Path(home).resolve() / "jobs" if home else Path(tempfile.gettempdir()) / f"docml-jobs-{os.getuid()}"


class LocalBackend:
    """Implements `Backend`. `command` runs the trainer; tests give another."""

    name = "local"
    poll_seconds = 0.2
    log_settle_seconds = 0.0
    stop_seconds = 20.0

    def __init__(self, store: Store, environment: Mapping[str, str], command: Sequence[str]) -> None:
        self.store = store
        self.environment = dict(environment)
        self.command = tuple(command)
        self.scratch = scratch_folder(environment)
        self._silent_since: dict[str, float] = {}  # job name -> when its supervisor was first seen to stand still

    def where(self) -> str:
        """This machine, for people: the job's state tells whether its supervisor can be seen from here."""
        return f"machine {socket.gethostname()}"

    def check(self, spec: JobSpec) -> None:
        """Nothing is refused here: the trainer says what it lacks."""

    def request(self, job: Job) -> dict[str, Any]:
        """The command line, and on how many hosts."""
        return {"command": [*self.command, job.spec.task.command], "hosts": job.spec.compute.instance_count}

    def stage(self, job: Job) -> None:
        """The supervisor reads the channels from the store."""

    def create(self, job: Job) -> None:
        """Start a supervisor, which goes on without this process. NameTaken if the job has a state already."""
        if self._state(job) is not None:
            raise NameTaken(job.name)
        self.store.delete([stop_key(job)])  # of an attempt that never came into being
        self._forget_old()
        token = secrets.token_hex(8)
        folder = self.scratch / f"{job.name}-{token[:6]}"
        assignment = Assignment(
            name=job.name,
            attempt=job.attempt,
            token=token,
            store_url=self.store.url,
            spec=job.spec,
            nonce=job.nonce,
            command=self.command,
        )
        try:
            folder.mkdir(parents=True, mode=0o700)
            (folder / "job.json").write_bytes(assignment.to_bytes())
            process = process_here(self._launch(folder, job))
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise JobRefused(f"job {job.name}: {unusable_folder(self.scratch, error)}") from error
        state = LocalState.first(assignment, folder, process)
        # Claimed here for the supervisor, which may be slow to start: nobody waits for that.
        self.store.put_if_absent(state_key(job), state.to_bytes())
        claimed = self._state(job)
        if claimed is None or claimed.token != token:
            raise NameTaken(job.name)

    def _launch(self, folder: Path, job: Job) -> int:
        """Start a supervisor; its process number."""
        supervisor = [sys.executable, "-m", "resources.jobs.local.supervisor", str(folder)]
        make_unreadable()  # the job's code is this user's, too
        number = start_detached(supervisor, folder, self.environment, folder / "supervisor.log")
        if number is None:
            raise JobRefused(f"job {job.name}: its supervisor did not start: {_end_of(folder / 'supervisor.log')}")
        return number

    def spec_hash(self, job: Job) -> str | None:
        """From the job's state; None if there is none."""
        state = self._state(job)
        return state.spec_hash if state else None

    def observe(self, job: Job) -> JobState | None:
        """The state that the supervisor wrote; a job whose supervisor is gone has failed, and what is left of it is ended."""
        state = self._state(job)
        if state is None:
            return None
        if not state.ended and self._is_dead(state):
            state = self._state(job) or state  # it may have ended between the two looks
        if not state.ended and self._is_dead(state):
            kill_marked(f"{BASE_VARIABLE}={state.folder}")
            reason = "its supervisor process died (killed, or the machine restarted)"
            log = _end_of(Path(state.folder) / "supervisor.log")
            reason += f": {log}" if log else ""
            return JobState("Failed", phases=state.phases, reason=reason, cause="lost", started_at=state.started_at)
        return JobState(
            status=state.status,
            phases=(*state.phases, *self._silence(job, state)),
            reason=state.reason,
            cause=state.cause,
            started_at=state.started_at,
            ended_at=state.ended_at,
            seconds=state.seconds,
        )

    def _is_dead(self, state: LocalState) -> bool:
        if state.process.is_visible:
            return not state.process.is_alive
        locked = is_locked(Path(state.folder))  # another container's supervisor, in a folder that both see
        if locked is not None:
            return not locked
        if state.process.is_of_another_boot and state.beat < booted_at():
            return True
        return time.time() - state.beat > SILENCE_SECONDS

    def _silence(self, job: Job, state: LocalState) -> tuple[str, ...]:
        """A sentence on a supervisor that lives and stands still. Beyond the bound it is ended, and the job counts as lost."""
        if state.ended or time.time() - state.beat < SILENCE_SECONDS:
            self._silent_since.pop(job.name, None)
            return ()
        since = self._silent_since.setdefault(job.name, time.monotonic())
        if time.monotonic() - since > STALL_SECONDS and state.process.is_visible:
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.process.pid, signal.SIGKILL)
        return (
            f"Its supervisor (process {state.process.pid}) shows no sign of life: is it stopped (SIGSTOP)? After "
            f"{STALL_SECONDS / 60:.0f} minutes it is ended, and the job resumed",
        )

    def logs(self, job: Job, cursor: Cursor) -> list[LogLine]:
        """New lines of the hosts' log files; of the uploaded log once the job's folder is gone."""
        state = self._state(job)
        if state is None:
            return []
        folder = Path(state.folder) / "logs"
        if not folder.is_dir():
            return self._uploaded_log(job, cursor)
        lines = []
        for path in sorted(folder.glob("*.log")):
            try:
                with open_left(path) as stream:
                    stream.seek(cursor.get(path.name, 0))
                    data = stream.read()
            except OSError:  # the job has put something else in its place
                continue
            end = len(data) if state.ended else data.rfind(b"\n") + 1
            cursor[path.name] = cursor.get(path.name, 0) + end
            lines += [LogLine(path.stem, text) for text in _lines(data[:end])]
        return lines

    def _uploaded_log(self, job: Job, cursor: Cursor) -> list[LogLine]:
        """The log of a job on another machine is seen when it has ended."""
        if "uploaded" in cursor:
            return []
        try:
            data = self.store.get(log_key(job))
        except MissingKey:
            return []
        cursor["uploaded"] = len(data)
        return [LogLine("algo-1", text) for text in _lines(data)]

    def stop(self, job: Job) -> None:
        """Leave the object that the supervisor looks for."""
        state = self._state(job)
        if state is None or not state.ended:
            self.store.put(stop_key(job), b"")

    def collect(self, job: Job) -> str:
        """Where the supervisor left the output."""
        return job.output_prefix

    def links(self, job: Job) -> Mapping[str, str]:
        """The uploaded log."""
        return {"log": self.store.uri(log_key(job))}

    def _state(self, job: Job) -> LocalState | None:
        """The job's state; one that was deleted while its supervisor lives here is put back, or a second one would start."""
        key = state_key(job)
        try:
            return LocalState.from_bytes(self.store.get(key), self.store.uri(key))
        except MissingKey:
            state = find_running(self.scratch, job)
        if state is not None:
            self.store.put_if_absent(key, state.to_bytes())
        return state

    def _forget_old(self) -> None:
        """Remove folders of jobs long past; never one in which a supervisor lives, however old it is."""
        if not self.scratch.is_dir():
            return
        for folder in self.scratch.iterdir():
            if time.time() - folder.stat().st_mtime > OLD_SECONDS and not is_locked(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _end_of(log: Path) -> str:
    """The end of a supervisor's own log, which is empty unless something went wrong."""
    with contextlib.suppress(OSError):
        return log.read_text(errors="replace")[-800:].strip()
    return ""


def _lines(data: bytes) -> list[str]:
    """Lines of text; of a line that was drawn over itself (a progress bar) the last state."""
    lines = [line.rsplit("\r", 1)[-1] for line in data.decode(errors="replace").split("\n")]
    return [line for line in lines if line.strip()]
