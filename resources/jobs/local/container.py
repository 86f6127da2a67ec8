"""One container of SageMaker's, without SageMaker: its `/opt/ml` below a base folder, its process, its end.

The folders are those of docs/architecture.md. A job has one container a host; a tuning has one (or several) a trial.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docml_contract import hyperparameters as encoding
from docml_contract.jobs import JobSpec
from docml_contract.names import OUTPUT
from resources.jobs.backend import Job
from resources.jobs.local.environment import trainer_environment
from resources.store import Store

# Between SIGTERM (training checkpoints) and SIGKILL. SageMaker gives 120 s; at a desk people wait.
GRACE_SECONDS = 8.0


class Container:
    """One host of a job. `command` is what runs in it: `python -m docml_trainer`, to which the step's command is added."""

    def __init__(self, job: Job, base: Path, log: Path, hosts: Sequence[str], index: int) -> None:
        self.job = job
        self.base = base
        self.log = log
        self.hosts = tuple(hosts)
        self.index = index
        self._process: subprocess.Popen[bytes] | None = None
        self._told: float | None = None

    @property
    def is_training(self) -> bool:
        return self.job.spec.kind != "processing"

    @property
    def output(self) -> Path:
        return self.base / ("model" if self.is_training else "processing/output/result")

    @property
    def checkpoints(self) -> Path:
        return self.base / "checkpoints"

    # -- before

    def lay_out(self, store: Store, hyperparameters: Mapping[str, Any]) -> None:
        """Folders, configuration files and channels. MissingKey where a channel's file is not there."""
        spec = self.job.spec
        channels = "input/data" if self.is_training else "processing/input"
        for folder in (self.output, self.base / "output", *([self.checkpoints] if self.is_training else [])):
            folder.mkdir(parents=True, exist_ok=True)
        store.download(self.job.spec_prefix, self.base / channels / "spec")
        for channel in spec.channels:
            store.download(channel.prefix, self.base / channels / channel.name, channel.files)
        resources = {"current_host": self.hosts[self.index], "hosts": list(self.hosts), "network_interface_name": "lo"}
        if not self.is_training:
            self._write("config/resourceconfig.json", resources)
            self._write("config/processingjobconfig.json", {"ProcessingJobName": self.job.name})
            return
        self._write("input/config/resourceconfig.json", resources)
        self._write("input/config/hyperparameters.json", encoding.encode(hyperparameters))
        names = ["spec", *(channel.name for channel in spec.channels)]
        self._write("input/config/inputdataconfig.json", {name: {"TrainingInputMode": "File"} for name in names})

    def _write(self, path: str, content: Any) -> None:
        file = self.base / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))

    # -- while it runs

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run the step's command as the leader of a process group of its own; its output goes straight into the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, self.job.spec.task.command],
                env=trainer_environment(environment, self.job.spec, self.base),
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def group(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process is not None else None

    def ask_to_stop(self) -> None:
        """SIGTERM to the entry point alone, as SageMaker does; after the grace, `enforce` kills what is left."""
        if self._told is None and self._process is not None:
            self._told = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def enforce(self) -> None:
        """SIGKILL to the group once the grace has passed."""
        if self._told is not None and time.monotonic() - self._told > GRACE_SECONDS:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole group: a container's end is the end of all its processes."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    # -- after

    @property
    def complete(self) -> bool:
        """Whether the command has written all of its output."""
        return (self.output / OUTPUT).is_file()

    @property
    def _failure(self) -> Path:
        return self.base / "output/failure"

    @property
    def has_reason(self) -> bool:
        return self._failure.is_file() and self._failure.stat().st_size > 0

    def reason(self) -> str:
        """Why it failed: the reason that it left, else how its process ended."""
        if self.has_reason:
            return self._failure.read_text(encoding="utf-8", errors="replace").strip()
        code = self.exit_code
        if code is not None and code < 0:
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            return f"killed by {signal.Signals(-code).name}{hint}"
        return f"exit code {code}" if code else f"it ended without writing {OUTPUT}"

    @property
    def was_killed(self) -> bool:
        """Ended by a signal and without a reason of its own: the machine's doing, not the job's."""
        code = self.exit_code
        return code is not None and code < 0 and not self.has_reason


def host_names(spec: JobSpec) -> tuple[str, ...]:
    """Names of a job's hosts: loopback addresses where there are several, so that whatever rendezvous resolves."""
    count = spec.compute.instance_count
    return ("algo-1",) if count == 1 else tuple(f"127.0.0.{index + 1}" for index in range(count))


def log_name(index: int) -> str:
    """The log file of a host, named as SageMaker names hosts."""
    return f"algo-{index + 1}.log"
