"""Lays out a job's folder as a job engine does, and runs the real entry point over it in a subprocess."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docml_contract import hyperparameters as encoding
from docml_contract import names
from docml_contract.jobs import JobSpec
from docml_contract.log_lines import parse_event
from docml_contract.manifests import JobOutput, verify_folder
from docml_trainer.container import Folders

TRAINER_IMAGE = Path(__file__).resolve().parents[2] / "trainer_image"
KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "CUDA_VISIBLE_DEVICES")  # of the tests' own environment


@dataclass(frozen=True)
class Finished:
    """How a run of the trainer ended."""

    returncode: int
    stdout: str
    stderr: str

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of that name, in order."""
        parsed = (parse_event(line) for line in self.stdout.splitlines())
        return [event for event in parsed if event and event["event"] == name]


@dataclass(frozen=True)
class JobFolder:
    """A job's base folder; `command` decides between the processing and the training layout."""

    base: Path
    command: str

    @property
    def folders(self) -> Folders:
        return Folders(self.base, self.command)

    def channel(self, name: str) -> Path:
        folder = self.folders.channel(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def fill_channel(self, name: str, source: Path) -> Path:
        """Copy a folder into a channel."""
        return Path(shutil.copytree(source, self.channel(name), dirs_exist_ok=True))

    def write_spec(self, spec: JobSpec, files: Mapping[str, bytes | str] | None = None) -> None:
        """The spec channel: spec.json and the accompanying files; for a training also its hyperparameters."""
        channel = self.channel("spec")
        (channel / names.SPEC).write_bytes(spec.to_bytes())
        for name, content in (files or {}).items():
            (channel / name).write_bytes(content.encode() if isinstance(content, str) else content)
        if self.command == "train":
            self.write_hyperparameters(spec.hyperparameters)

    def write_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """What SageMaker passes to a training job (a tuning's trial gets `_tuning_objective_metric` as well)."""
        self._write_json("input/config/hyperparameters.json", encoding.encode(values))

    def write_hosts(self, current: str, hosts: list[str], interface: str = "lo") -> None:
        folder = "input/config" if self.command == "train" else "config"
        content = {"current_host": current, "hosts": hosts, "network_interface_name": interface}
        self._write_json(f"{folder}/resourceconfig.json", content)

    def run(self, *, timeout: float = 240, **environment: str) -> Finished:
        """`python -m docml_trainer <command>` in a process of its own."""
        process = subprocess.run(
            [sys.executable, "-m", "docml_trainer", self.command],
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Finished(process.returncode, process.stdout, process.stderr)

    def stop_once(self, is_busy: Callable[[int], bool], **environment: str) -> int:
        """Start the command, send it SIGTERM as soon as `is_busy(pid)`, and return its exit code."""
        with subprocess.Popen(
            [sys.executable, "-m", "docml_trainer", self.command], env=self.environment(**environment)
        ) as process:
            deadline = time.monotonic() + 120
            while not is_busy(process.pid):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.terminate()
            return process.wait(timeout=60)

    def environment(self, **additions: str) -> dict[str, str]:
        """For callers that start the process themselves (to send it signals, say)."""
        kept = {key: value for key, value in os.environ.items() if key in KEPT}
        return {
            **kept,
            "PYTHONPATH": str(TRAINER_IMAGE),
            "SAGEMAKER_BASE_DIR": str(self.base),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            **additions,
        }

    @property
    def output(self) -> Path:
        return self.folders.output

    def result(self) -> JobOutput:
        """OUTPUT.json, after checking that every file it names is there."""
        path = self.output / names.OUTPUT
        output = JobOutput.from_bytes(path.read_bytes(), str(path))
        verify_folder(self.output, output.files)
        return output

    @property
    def failure(self) -> str:
        """The reason that a failed job left, or an empty text."""
        path = self.base / "output/failure"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def _write_json(self, path: str, content: Any) -> None:
        target = self.base / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content), encoding="utf-8")


def children_of(pid: int) -> set[int]:
    """The processes that a process has started, and those that they have started."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        direct = {int(child) for task in tasks for child in (task / "children").read_text().split()}
    except OSError:  # it has just ended
        return set()
    return direct.union(*map(children_of, direct))


def assert_gone(pids: Iterable[int], seconds: float) -> None:
    """None of these processes runs any more, `seconds` from now at the latest."""
    assert pids
    deadline = time.monotonic() + seconds
    while running := [pid for pid in pids if _is_running(pid)]:
        assert time.monotonic() < deadline, running
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    """Neither gone nor waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
