"""A tracker that works, and trackers that hang, die or do not exist: the training does not notice.

The real client tells a recording server, or its files; stand-ins take its place only where it has to misbehave.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import moto
import pytest

from docml_contract.jobs import Tracking
from docml_trainer.training.tracking import Tracker, resolve_key
from tests.docml_trainer.jobfolder import TRAINER_IMAGE, JobFolder
from tests.docml_trainer.trainings import run_here, training_job
from tests.servers.wandb import KEY, RecordingServer, recording_server

HEAD = "class Settings:\n    def __init__(self, **_): pass\n"
# Stand-ins for the client library, to be found before it.
CLIENTS = {
    "hangs": HEAD + "import time\ndef init(**_): time.sleep(600)\n",
    "dies": HEAD + "import os\ndef init(**_): os._exit(9)\n",
    "raises": HEAD + "def init(**_): raise ConnectionError('no route to host')\n",
    "writes": HEAD
    + """
import json, os
class Run:
    url = "https://tracker.example/run"
    def __init__(self, settings): self.said = [settings]; self.summary = self
    def log(self, values): self.said.append(values)
    def update(self, values): self.said.append(values)
    def finish(self): open(os.environ["SAID"], "w").write(json.dumps(self.said, default=str))
def init(**settings): return Run(settings)
""",
}


def client(folder: Path, kind: str) -> str:
    """PYTHONPATH with a stand-in for wandb."""
    (folder / "client").mkdir()
    (folder / "client/wandb.py").write_text(CLIENTS[kind])
    return os.pathsep.join([str(folder / "client"), str(TRAINER_IMAGE)])


def tracking(mode: str = "online") -> Tracking:
    return Tracking.model_validate(
        {"mode": mode, "project": "docml", "group": "EXP-1", "name": "run_1-bag", "job_type": "training"}
    )


def test_what_is_reported(tmp_path: Path) -> None:
    job = training_job(tmp_path / "job", tracking=tracking())
    done = job.run(PYTHONPATH=client(tmp_path, "writes"), SAID=str(tmp_path / "said.json"), WANDB_API_KEY="k" * 40)
    assert done.returncode == 0, done.stderr
    assert done.events("tracking") == [{"event": "tracking", "url": "https://tracker.example/run"}]
    start, *epochs, summary = json.loads((tmp_path / "said.json").read_text())
    assert (start["group"], start["name"], start["job_type"]) == ("EXP-1", "run_1-bag", "training")
    assert start["config"]["train_batch_size"] == 8
    assert [record["epoch"] for record in epochs] == [1, 2]
    assert {"train_loss", "valid_loss", "valid_f1", "valid_accuracy", "learning_rate"} <= epochs[0].keys()
    assert summary == {name: job.result().facts[name] for name in ("valid_f1", "valid_accuracy", "valid_loss")}


@pytest.mark.parametrize("kind", ["hangs", "dies", "raises"])
def test_a_dead_tracker_neither_fails_nor_slows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", client(tmp_path, kind))
    monkeypatch.setattr("docml_trainer.training.tracking.SECONDS_TO_FINISH", 3)
    tracker = Tracker.start(tracking(), tmp_path / "tracking", run_id="a" * 16, config={})
    for epoch in range(2000):  # more than the pipe holds
        tracker.log({"epoch": epoch, "valid_f1": 0.5, "text": "left out"})
    tracker.finish({"valid_f1": 0.5})
    said = capfd.readouterr().out
    assert said.count("Warning: tracking is off from here on, the training goes on without it") == 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RecordingServer]:
    """A recording server that the real client, also one in this process' children, reports to."""
    with recording_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("PYTHONPATH", str(TRAINER_IMAGE))
        monkeypatch.setenv("HOME", str(tmp_path))
        yield server


def synchronize(job: JobFolder) -> list[str]:
    """Send the kept runs of a job with `wandb sync`. Returns the paths of what was kept."""
    for run in (job.output / "wandb").iterdir():
        command = [str(Path(sys.executable).with_name("wandb")), "sync", str(run)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return [entry.path for entry in job.result().files if entry.path.startswith("wandb/")]


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("kind", ["training", "comparison", "tuning"])
def test_what_the_real_client_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: RecordingServer, kind: str, mode: str
) -> None:
    models = ("bag", "other") if kind == "comparison" else ("bag",)
    where = tracking(mode).model_copy(update={"job_type": kind})
    job = training_job(tmp_path / "job", models=models, tracking=where)
    if kind == "tuning":
        job.write_hyperparameters({"learning_rate": 0.1, "_tuning_objective_metric": "valid_f1"})
    assert run_here(job, monkeypatch) == 0, job.failure
    if mode == "offline":
        assert not server.runs
        kept = synchronize(job)
        assert kept
        assert all(path.endswith(".wandb") or "/files/" in path for path in kept), "neither logs nor links into caches"
        assert not any(path.is_symlink() for path in job.output.rglob("*"))
    else:
        assert not (job.output / "wandb").exists()
    ((run_id, run),) = server.runs.items()
    assert len(run_id) == 16
    assert (run.group, run.job_type, run.project) == ("EXP-1", kind, "docml")
    assert run.name == (f"run_1-bag-{run_id[:6]}" if kind == "tuning" else "run_1-bag")
    assert run.config["train_batch_size"] == 8
    assert run.config["learning_rate"] == (0.1 if kind == "tuning" else 0.05)
    history = json.loads((job.output / "history.json").read_text())
    for metric in ("epoch", "train_loss", "valid_loss", "valid_f1", "valid_accuracy", "learning_rate"):
        assert run.curve(metric) == pytest.approx([record[metric] for record in history])
    assert run.summary["valid_f1"] == pytest.approx(job.result().facts["valid_f1"])


def test_a_server_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("PYTHONPATH", str(TRAINER_IMAGE))
    monkeypatch.setattr("docml_trainer.training.tracking.SECONDS_TO_FINISH", 3)
    job = training_job(tmp_path, tracking=tracking("online"))
    assert run_here(job, monkeypatch) == 0
    said = capfd.readouterr().out
    assert said.count("Warning: tracking is off from here on, the training goes on without it") == 1
    assert job.result().facts["epochs"] == 2


def test_a_resumed_offline_training_is_kept_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: RecordingServer
) -> None:
    job = training_job(tmp_path / "job", tracking=tracking("offline"))
    with monkeypatch.context() as patch:
        patch.setattr("docml_trainer.training.results.export", lambda *_: 1 / 0)
        assert run_here(job, monkeypatch) == 1
    assert run_here(job, monkeypatch) == 0
    synchronize(job)
    (run,) = server.runs.values()
    assert run.curve("epoch") == [1, 2]


def test_disabled_starts_nothing(tmp_path: Path) -> None:
    tracker = Tracker.start(tracking("disabled"), tmp_path / "tracking", run_id="a", config={})
    tracker.log({"epoch": 1})
    tracker.finish({})
    tracker.keep_offline_runs(tmp_path / "output")
    assert not list(tmp_path.iterdir())


REGIONS = {  # what a container may have of its region
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_REGION": "eu-central-1",
    "TRAINING_JOB_ARN": "arn:aws:sagemaker:eu-central-1:123456789012:training-job/x",
}


@pytest.mark.parametrize("variable", REGIONS)
def test_a_key_may_be_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in REGIONS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv(variable, REGIONS[variable])
    with moto.mock_aws():
        secrets = boto3.client("secretsmanager", region_name="eu-central-1")
        secrets.create_secret(Name="team/wandb", SecretString=json.dumps({"key": "abc"}))
        secrets.create_secret(Name="plain", SecretString="def")
        assert resolve_key("secretsmanager:team/wandb#key") == "abc"
        assert resolve_key("secretsmanager:plain") == "def"
    assert resolve_key("ghi") == "ghi"
