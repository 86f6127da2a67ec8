"""One container of SageMaker's, without SageMaker: its `/opt/ml` below a base folder, its environment, its processes, its end.

The folders are those of docs/architecture.md. A job has one container per host; a tuning has one (or several) per trial. The first
process of a container is `container_init.py`, which bounds its log and takes everything with it when it, or its supervisor, ends.
"""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docml_contract import hyperparameters as encoding
from docml_contract.base import UnreadableDocument
from docml_contract.jobs import JobSpec, TrainTask
from docml_contract.manifests import JobOutput
from docml_contract.names import OUTPUT, RAISE_INSTEAD, RUNNING_FUNCTION, USER_FUNCTIONS, WITHOUT_A_WORD
from docml_contract.sandbox import credential_files, make_unreadable, seclude
from docml_contract.untrusted_files import is_hollow, open_left
from resources.aws import resolve
from resources.jobs.backend import Job
from resources.jobs.local.fork_server import ForkedProcess, ForkServer
from resources.jobs.local.gateway import Gateway
from resources.processes import cpu_ticks, kill_marked
from resources.store import Store

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
ALLOWED = frozenset(
    {
        *("PATH", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMP", "TEMP", "VIRTUAL_ENV"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("REQUESTS_CA_BUNDLE", "NO_PROXY", "no_proxy", *PROXIES),
        *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
        *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
        *("TRANSFORMERS_OFFLINE", "TORCH_HOME", "WANDB_BASE_URL", "DOCML_ENCODE_TIMEOUT_SECONDS"),
    }
)
ALLOWED_PREFIXES = ("LC_", "NVIDIA_", "NCCL_")
WANDB_KEY = "WANDB_API_KEY"
BASE_VARIABLE = "SAGEMAKER_BASE_DIR"  # where /opt/ml lies; every process of a container has it
# Between SIGTERM (training checkpoints) and SIGKILL. SageMaker gives 120 s; at a desk people wait.
GRACE_SECONDS = 8.0
# How long the processes may go on once the output is complete: a thread that was left behind never ends.
LEFTOVER_SECONDS = 60.0
# What user code may print: bytes per container, bytes per line.
LOG_BYTES = 16 << 20
LINE_BYTES = 16 << 10
REASON_BYTES = 64 << 10  # of the reason that it leaves when it fails
HOME = "home"  # below the base: what a container has for a home
LEAST_BYTES = 64 << 10  # less space than this is none
INIT = Path(__file__).with_name("container_init.py")
END_SECONDS = 15.0  # within which the first process has ended all others


class Container:
    """One host of a job. `command` is what runs in it: `python -m docml_trainer`, to which the step's command is added."""

    def __init__(self, job: Job, base: Path, log: Path, hosts: Sequence[str], index: int) -> None:
        self.job = job
        self.base = base
        self.log = log
        self.hosts = tuple(hosts)
        self.index = index
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None
        self._gateway: Gateway | None = None
        self._told: float | None = None
        self._complete_since: float | None = None
        self._is_left_over = False

    @property
    def is_training(self) -> bool:
        """Whether its folders are those of a training (or trial)."""
        return self.job.spec.kind != "processing"

    @property
    def output(self) -> Path:
        """Where the command leaves its output."""
        return self.base / ("model" if self.is_training else "processing/output/result")

    @property
    def checkpoints(self) -> Path:
        """Where a training keeps its checkpoints, and a preparation or prediction the parts that are finished."""
        return self.base / ("checkpoints" if self.is_training else "processing/checkpoints")

    # -- before

    def lay_out(self, store: Store, hyperparameters: Mapping[str, Any]) -> None:
        """Folders, configuration files and channels. MissingKey where a channel's file is not there."""
        spec = self.job.spec
        channels = "input/data" if self.is_training else "processing/input"
        (self.base / HOME).mkdir(parents=True, mode=0o700, exist_ok=True)
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

    def start(self, command: Sequence[str], environment: Mapping[str, str], server: ForkServer | None = None) -> None:
        """Make the container's first process, which waits for `go`: the container can be noted before anything of it runs.

        server: makes it by a fork, if it can.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        spec = self.job.spec
        network = network_of(spec)
        if network == "gateway":
            self._gateway = Gateway(environment)
        command = [*command, spec.task.command]
        variables = {**trainer_environment(environment, spec, self.base), **self.job.request_variables}
        make_unreadable()
        process: subprocess.Popen[bytes] | ForkedProcess | None = None
        if server is not None:
            process = server.fork(
                {
                    "init": (str(self.log), LOG_BYTES, LINE_BYTES),
                    "command": command[1:],
                    "environment": variables,
                    "folder": str(self.base),
                    "network": network,
                    "hidden": credential_files(environment),
                },
                self._gateway.theirs if self._gateway else None,
            )
        self._process = process or self._start_fresh(command, environment, network, variables)
        if self._gateway is not None:
            self._gateway.start()

    def _start_fresh(
        self, command: Sequence[str], environment: Mapping[str, str], network: str, variables: Mapping[str, str]
    ) -> "subprocess.Popen[bytes]":
        init = [sys.executable, "-I", "-S", str(INIT), str(self.log), str(LOG_BYTES), str(LINE_BYTES)]
        if self._gateway is not None:
            network = f"gateway:{self._gateway.theirs}"
        return subprocess.Popen(
            [*init, *seclude(command, environment, network)],
            env=variables,
            cwd=self.base,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[self._gateway.theirs] if self._gateway else [],
        )

    def go(self) -> None:
        """Run the step's command."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"g")
        self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """The first process's number."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 0 for one whose output was complete and whose remains were ended."""
        if self._is_left_over:
            return 0
        return self._process.poll() if self._process is not None else None

    def end_leftovers(self) -> bool:
        """Whether it was ended because it had handed over its output long ago."""
        if self.exit_code is not None or not self.complete:
            return False
        self._complete_since = self._complete_since or time.monotonic()
        if time.monotonic() - self._complete_since < LEFTOVER_SECONDS:
            return False
        self.kill()
        self._is_left_over = True
        return True

    def sign_of_life(self) -> tuple[int, int]:
        """(processor time, length of the log)."""
        log = self.log.stat().st_size if self.log.exists() else 0
        return cpu_ticks(self.pid), log

    def ask_to_stop(self) -> None:
        """SIGTERM to the command alone, as SageMaker does; after the grace, `enforce` kills what is left."""
        if self._told is None and self._process is not None:
            self._told = time.monotonic()
            self._process.send_signal(signal.SIGTERM)

    def enforce(self) -> None:
        """SIGKILL to everything once the grace has passed."""
        if self._told is not None and time.monotonic() - self._told > GRACE_SECONDS:
            self.kill()

    def kill(self) -> None:
        """End everything at once: a container's end is the end of all its processes."""
        process = self._process
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:  # it was stopped, or worse
            process.kill()
            process.wait()
        kill_marked(f"{BASE_VARIABLE}={self.base}")
        if self._gateway is not None:
            self._gateway.close()

    # -- after

    @property
    def complete(self) -> bool:
        """Whether the command has written all of its output."""
        return (self.output / OUTPUT).is_file()

    def find_output_problem(self) -> str | None:
        """What is wrong with an output that the command has called complete; a sentence, or None."""
        try:
            output = JobOutput.from_bytes((self.output / OUTPUT).read_bytes(), OUTPUT)
        except UnreadableDocument as error:
            return str(error)
        for entry in output.files:
            path = self.output / entry.path
            if not path.is_file():
                return f"{OUTPUT} names {entry.path}, which is not there"
            if path.stat().st_size != entry.size:
                return f"{entry.path} has {path.stat().st_size} bytes, and {OUTPUT} says {entry.size}"
        for path in self.output.rglob("*"):
            if path.is_file() and is_hollow(path.stat()):
                return (
                    f"{path.relative_to(self.output)} is {path.stat().st_size} bytes long and holds next to "
                    "nothing: a sparse file would be copied out to its full length; write only what is needed"
                )
        return None

    def _left_reason(self, file: str = "failure") -> str:
        with contextlib.suppress(OSError), open_left(self.base / "output" / file) as stream:
            return stream.read(REASON_BYTES).decode(errors="replace").strip()
        return ""

    @property
    def has_reason(self) -> bool:
        """Whether the command left a reason why it failed."""
        return bool(self._left_reason())

    def reason(self) -> str:
        """Why it failed: the reason that it left, else how its process ended."""
        if reason := self._left_reason():
            return reason
        if lacks_space(self.base):
            return unusable_folder(self.base, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        if number := self._killed_by():
            hint = " (out of memory?)" if number == signal.SIGKILL else ""
            return f"killed by {signal.Signals(number).name}{hint}"
        if function := self._left_reason(RUNNING_FUNCTION):
            return f"{USER_FUNCTIONS}: {function} ended its process (exit code {self.exit_code}); {RAISE_INSTEAD}"
        if self.exit_code:
            return f"exit code {self.exit_code}"
        return f"it ended without writing {OUTPUT}: {WITHOUT_A_WORD}"

    @property
    def was_killed(self) -> bool:
        """Ended by a signal and without a reason of its own: the machine's doing, not the job's."""
        return bool(self._killed_by()) and not self.has_reason

    def _killed_by(self) -> int:
        """The signal that ended it, or 0: of SIGTERM it may have made an end of its own, with a checkpoint."""
        code = self.exit_code or 0
        return signal.SIGTERM if code == 128 + signal.SIGTERM else max(0, -code)


def signs_of_life(containers: Sequence[Container]) -> list[tuple[int, int]]:
    """Of every container that runs: (processor time, length of the log), which do not change while everything in it stands still."""
    return [container.sign_of_life() for container in containers if container.exit_code is None]


def network_of(spec: JobSpec) -> str:
    """Which network a job has. Models and tokenizers come from hubs through a gateway; the machine's own network is for hosts that must find
    each other, and for the tracker's program."""
    if not spec.needs_network:
        return "none"
    online = isinstance(spec.task, TrainTask) and spec.task.tracking.mode == "online"
    return "host" if online or spec.compute.instance_count > 1 else "gateway"


def trainer_environment(environment: Mapping[str, str], spec: JobSpec, base: Path) -> dict[str, str]:
    """The job's environment. The tracker's key is in it only where the job reports online, resolved if it is a reference."""
    kept = {key: value for key, value in environment.items() if key in ALLOWED or key.startswith(ALLOWED_PREFIXES)}
    kept |= {name: without_user(kept[name]) for name in PROXIES if name in kept}
    # A home of its own, and the caches of this user's: models are not fetched anew for every job.
    home, cache = base / HOME, environment.get("HOME") and str(Path(environment["HOME"]) / ".cache")
    kept |= {"HOME": str(home), "HF_TOKEN_PATH": str(home / "token"), "AWS_EC2_METADATA_DISABLED": "true"}
    kept |= {"XDG_CACHE_HOME": cache} if cache and "XDG_CACHE_HOME" not in kept else {}
    kept |= {BASE_VARIABLE: str(base), "PYTHONUNBUFFERED": "1"}
    if isinstance(spec.task, TrainTask) and spec.task.tracking.mode == "online" and environment.get(WANDB_KEY):
        kept[WANDB_KEY] = resolve(environment[WANDB_KEY], environment)
    return kept


def without_user(url: str) -> str:
    """A proxy's URL without the name and password that it may hold: they open more than a job needs."""
    scheme, separator, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def lacks_space(folder: Path) -> bool:
    """Whether nothing more can be written there: no space, or no inode."""
    system = os.statvfs(folder)
    return system.f_bavail * system.f_frsize < LEAST_BYTES or (system.f_files > 0 and system.f_favail == 0)


def unusable_folder(folder: Path, error: OSError) -> str:
    """Why jobs cannot work in a folder, and what to do."""
    return f"jobs cannot work in {folder} ({error.strerror or error}): free space, fix its permissions, or let DAGSTER_HOME name another folder"


def host_names(spec: JobSpec) -> tuple[str, ...]:
    """Names of a job's hosts: loopback addresses where there are several, so that whatever rendezvous resolves."""
    count = spec.compute.instance_count
    return ("algo-1",) if count == 1 else tuple(f"127.0.0.{index + 1}" for index in range(count))


def log_name(index: int) -> str:
    """The log file of a host, named as SageMaker names hosts."""
    return f"algo-{index + 1}.log"
