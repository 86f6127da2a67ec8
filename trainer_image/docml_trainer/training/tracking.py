"""Weights & Biases, kept at arm's length: our own files are the truth.

The client runs in a process of its own, fed through a pipe that is never waited for. If it hangs, dies or cannot reach its server,
the training says so once and goes on.

    python -m docml_trainer.training.tracking     # the other end: JSON lines from standard input
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docml_contract.jobs import Tracking
from docml_contract.log_lines import TRACKING, format_event
from docml_contract.names import OFFLINE_RUNS, SECRET_REFERENCE

SECONDS_TO_FINISH = 20  # to send what is left after the training
SECONDS_TO_START = 60


class Tracker:
    """Reports to Weights & Biases, or nowhere."""

    def __init__(self, process: subprocess.Popen[bytes] | None = None, folder: Path | None = None) -> None:
        self._process = process
        self.folder = folder  # the client's files
        self._waiting = b""  # what the pipe has not taken yet

    @classmethod
    def start(cls, tracking: Tracking, folder: Path, *, run_id: str, config: Mapping[str, Any]) -> "Tracker":
        """Start the client for `tracking`, with its files in `folder`; no process where tracking is disabled.

        run_id: equal for all attempts of one training, so that they make one curve.
        """
        if tracking.mode == "disabled":
            return cls()
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed; this one logs its epochs again
        folder.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "docml_trainer.training.tracking"], stdin=subprocess.PIPE, start_new_session=True
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        tracker = cls(process, folder)
        tracker._send({"start": tracking.model_dump(), "run_id": run_id, "config": dict(config), "folder": str(folder)})
        return tracker

    def log(self, record: Mapping[str, Any]) -> None:
        """The numbers of an epoch."""
        self._send({"log": {name: value for name, value in record.items() if isinstance(value, int | float)}})

    def keep_offline_runs(self, output: Path) -> None:
        """Copy the runs that were not sent below `output`, for `wandb sync`: their records and files.

        The client's own logs and its links into this machine's caches stay behind.
        """
        for run in sorted(self.folder.glob("wandb/offline-run-*")) if self.folder else []:
            for path in (*run.glob("*.wandb"), *run.glob("files/**/*")):
                if path.is_file() and not path.is_symlink():
                    target = output / OFFLINE_RUNS / path.relative_to(run.parent)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Let the client send what is left, for a bounded time."""
        self._send({"summary": dict(summary)})
        if self._process is None:
            return
        deadline = time.monotonic() + SECONDS_TO_FINISH
        while self._process is not None and self._waiting and time.monotonic() < deadline:
            time.sleep(0.05)
            self._write()
        if self._process is None:
            return
        process, self._process = self._process, None
        _close(process)
        try:
            code = process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _kill(process)
            code = None
        if code != 0:
            _warn(f"it ended with {'a time-out' if code is None else f'exit code {code}'}")

    def _send(self, message: dict[str, Any]) -> None:
        if self._process is not None:
            self._waiting += (json.dumps(message, default=str) + "\n").encode()
            self._write()

    def _write(self) -> None:
        """As much as the pipe takes now; the rest waits for the next time."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            written = os.write(self._process.stdin.fileno(), self._waiting)
        except BlockingIOError:
            written = 0
        except OSError as error:
            process, self._process = self._process, None
            _kill(process)
            _warn(f"{type(error).__name__}: {error}")
            return
        self._waiting = self._waiting[written:]


def _warn(reason: str) -> None:
    print(f"Warning: tracking is off from here on, the training goes on without it ({reason}).", flush=True)


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With whatever the client started: it leads a session of its own."""
    _close(process)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def resolve_key(value: str) -> str:
    """A key, or what the reference `secretsmanager:NAME#key` stands for, read with the job's own role."""
    if not value.startswith(SECRET_REFERENCE):
        return value
    import boto3

    name, _, field = value.removeprefix(SECRET_REFERENCE).partition("#")
    secrets = boto3.client("secretsmanager", region_name=_region(os.environ))
    text: str = secrets.get_secret_value(SecretId=name)["SecretString"]
    return str(json.loads(text)[field]) if field else text


def _region(environment: Mapping[str, str]) -> str | None:
    """The job's. SageMaker's containers may have AWS_REGION only, which boto3 does not read; a training's ARN names it, too."""
    arn = environment.get("TRAINING_JOB_ARN", "").split(":")
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or (arn[3] if len(arn) > 3 else None)


def client() -> None:
    """Read messages until the training closes the pipe or dies; then finish within a bounded time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.alarm(SECONDS_TO_START)  # the default action ends the process
    messages = (json.loads(line) for line in sys.stdin)
    first = next(messages)
    tracking = Tracking.model_validate(first["start"])
    if key := os.environ.get("WANDB_API_KEY"):
        os.environ["WANDB_API_KEY"] = resolve_key(key)
    import wandb

    run = wandb.init(
        mode=tracking.mode,
        project=tracking.project,
        entity=tracking.entity,
        group=tracking.group,
        name=tracking.name,
        job_type=tracking.job_type,
        id=first["run_id"],
        resume="allow" if tracking.mode == "online" else None,
        config=first["config"],
        dir=first["folder"],
        settings=wandb.Settings(console="off", silent=True, init_timeout=SECONDS_TO_START - 10),
    )
    signal.alarm(0)
    if run.url:
        print(format_event(TRACKING, url=run.url), flush=True)
    for message in messages:
        if "log" in message:
            run.log(message["log"])
        else:
            run.summary.update(message["summary"])
    signal.alarm(SECONDS_TO_FINISH)
    run.finish()


if __name__ == "__main__":
    client()
