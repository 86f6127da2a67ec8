"""The container that a command runs in: its folders, its machine, and the signal that stops it.

The folders lie below `/opt/ml`, or below `$SAGEMAKER_BASE_DIR` in local jobs, and are drawn in docs/architecture.md. SageMaker lays
Processing and Training jobs out differently; the command decides which of the two it is.
"""

import hashlib
import json
import os
import platform
import resource
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from docml_contract import hyperparameters as encoding
from docml_contract import names
from docml_contract.jobs import JobSpec, TrainTask
from docml_contract.manifests import sha256_file, verify_folder
from docml_trainer.errors import FolderError, Stopped, TrainingError

BASE_VARIABLE = "SAGEMAKER_BASE_DIR"
DEFAULT_BASE = "/opt/ml"
COMMANDS = ("prepare", "train", "infer", "predict", "serve")
MAX_REASON = 1024  # SageMaker's limit for FailureReason and ExitMessage, in characters


@dataclass(frozen=True)
class ResourceConfig:
    """The hosts of the job, as SageMaker names them (`algo-1`, `algo-2`, …)."""

    current_host: str
    hosts: tuple[str, ...]
    interface: str | None = None  # the network interface that leads to the other hosts

    @property
    def index(self) -> int:
        """This host's position among the sorted hosts; 0 leads."""
        return sorted(self.hosts).index(self.current_host)


@dataclass(frozen=True)
class Folders:
    """Where the running command finds its inputs and leaves its outputs."""

    base: Path
    command: str

    def __post_init__(self) -> None:
        if self.command not in COMMANDS:
            raise FolderError(f"command {self.command!r}: expected one of {', '.join(COMMANDS)}")

    @classmethod
    def from_environment(cls, command: str) -> "Folders":
        """The folders of this process: below `$SAGEMAKER_BASE_DIR`, by default `/opt/ml`."""
        return cls(Path(os.environ.get(BASE_VARIABLE) or DEFAULT_BASE), command)

    @property
    def is_training(self) -> bool:
        """Whether SageMaker lays the folders out as for a training; otherwise as for a processing job."""
        return self.command == "train"

    def channel(self, name: str) -> Path:
        """The folder of an input channel, which need not exist (an empty channel is not mounted)."""
        return self.base / ("input/data" if self.is_training else "processing/input") / name

    @property
    def output(self) -> Path:
        """Where the result goes. Created on first use; OUTPUT.json is written into it last."""
        folder = self.base / ("model" if self.is_training else "processing/output/result")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def checkpoints(self) -> Path:
        """Synced with the store while a job runs that keeps any; holds what an earlier attempt left.

        SageMaker gives a processing job what was left in a channel of its own, `checkpoints`.
        """
        folder = self.base / ("checkpoints" if self.is_training else "processing/checkpoints")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def user_functions(self) -> Path:
        """The experimenter's code in the `spec` channel."""
        return self.channel("spec") / names.USER_FUNCTIONS

    def spec(self) -> JobSpec:
        """The job's spec. FolderError if the channel lacks it, UnreadableDocument if it is not one."""
        path = self.channel("spec") / names.SPEC
        if not path.is_file():
            raise FolderError(
                f"{path}: no such file; expected the job's spec in the channel 'spec' "
                f"(is {BASE_VARIABLE} set to the job's folder?)"
            )
        content = path.read_bytes()
        asked = os.environ.get(names.SPEC_HASH_VARIABLE)
        if asked and hashlib.sha256(content).hexdigest() != asked:
            raise FolderError(_swapped(path))
        spec = JobSpec.from_bytes(content, str(path))
        for name, sha256 in spec.files.items() if asked else ():
            file = path.with_name(name)
            if not file.is_file() or sha256_file(file) != sha256:
                raise FolderError(_swapped(file))
        return spec

    def prefix_of(self, channel: str) -> str:
        """Where a channel's files lie in the store."""
        return next((found.prefix for found in self.spec().channels if found.name == channel), channel)

    def verify_inputs(self) -> None:
        """Check the channels whose files' hashes the spec carries. IncompleteArtifact names what is damaged, and the remedy.

        Every byte is read once more than a job without damage needs; what was just downloaded comes from memory.
        """
        for channel in self.spec().channels:
            if (recorded := channel.recorded) is not None:
                remedy = (
                    f"Something damaged them after they were made: remove the folder {recorded.folder} from the store and execute the "
                    "run again, which makes it anew"
                )
                verify_folder(self.channel(channel.name), recorded.files, channel.prefix, remedy)

    def train_task(self) -> TrainTask:
        """The spec's task. FolderError if it is not a training."""
        task = self.spec().task
        if not isinstance(task, TrainTask):
            raise FolderError(f"the spec asks for {task.command!r}; expected a training task")
        return task

    def hyperparameters(self, searched: Mapping[str, encoding.SearchRange] | None = None) -> dict[str, Any]:
        """What SageMaker passes to a training job, decoded; {} for processing jobs, which have none.

        searched: the ranges of a tuning, whose choices get back the types that the settings gave them.
        """
        path = self.base / "input/config/hyperparameters.json"
        return encoding.decode_tuned(_read_json(path), searched or {}) if self.is_training and path.is_file() else {}

    def resource_config(self) -> ResourceConfig:
        """The hosts of this job. A folder without the file is a single host's."""
        path = self.base / ("input/config" if self.is_training else "config") / "resourceconfig.json"
        if not path.is_file():
            return ResourceConfig("algo-1", ("algo-1",))
        content = _read_json(path)
        current, hosts = str(content.get("current_host")), tuple(content.get("hosts") or ())
        if current not in hosts:
            raise FolderError(f"{path}: current_host {current!r} is not among hosts {list(hosts)}")
        return ResourceConfig(current, hosts, content.get("network_interface_name") or None)

    @property
    def running_function(self) -> Path:
        """Names the experimenter's function that runs, while it runs: one that ends the process is known by it."""
        return self.base / "output" / names.RUNNING_FUNCTION

    def fail(self, reason: str, detail: str = "") -> None:
        """Leave the reason of a failure where SageMaker reads it (training: `failure`, processing: `message`).

        The reason comes first; of the detail (a traceback) the end is kept, within 1024 characters altogether.
        """
        reason = reason[:MAX_REASON]
        room = MAX_REASON - len(reason) - 2
        text = f"{reason}\n\n{detail[-room:]}" if detail and room > 0 else reason
        folder = self.base / "output"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("failure",) if self.is_training else ("failure", "message"):
            (folder / name).write_text(text, encoding="utf-8")


def _swapped(path: Path) -> str:
    return (
        f"{path}: not what the job was asked to do (its hash differs from the one in the job's request); expected the object as docml "
        "put it: somebody changed the store after the job was asked for. Find out who, then run again"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FolderError(f"{path}: not JSON ({error}); expected what SageMaker writes there") from error
    if not isinstance(content, dict):
        raise FolderError(f"{path}: a {type(content).__name__}; expected a JSON object")
    return content


def hardware() -> dict[str, Any]:
    """Processor, operating system, usable cores, memory (GB) and GPU (None without one), for model cards and timings."""
    import torch  # takes a second to load, which a preparation need not spend

    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_memory_mb() -> float:
    """The most this process has had: of the GPU's memory where there is one, else of the machine's (Linux counts KiB)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's own error, or the CPU allocator's, which is a RuntimeError."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextmanager
def explained_out_of_memory() -> Iterator[None]:
    """Turn an out-of-memory error, of the GPU or the machine, into a TrainingError with the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory: {str(error).splitlines()[0] if str(error) else type(error).__name__} (lower train_batch_size and raise "
            "gradient_accumulation_steps by as much, which trains on the same documents a step; or set gradient_checkpointing, "
            "shorten documents in encode_data, or take a larger instance)"
        ) from error


EXIT_STOPPED = 128 + signal.SIGTERM  # 143: stopped, neither done nor failed


class StopSignal:
    """Outside `deferred()` there is nothing worth saving, and SIGTERM ends the process at once; inside it waits to be asked."""

    def __init__(self) -> None:
        self.requested = False
        self._deferring = False
        signal.signal(signal.SIGTERM, self._received)

    def _received(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferring:
            stop("before there was anything to save")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While the block runs, a signal is only noted, for the block to ask for."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False


def stop(where: str) -> None:
    """End the process as stopped."""
    print(f"Stopped by SIGTERM {where}.", flush=True)
    raise Stopped(EXIT_STOPPED)
