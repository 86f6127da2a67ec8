"""A tracker that works, and trackers that hang, die or do not exist: the training does not notice."""

import json
import os
from pathlib import Path

import boto3
import moto
import pytest

from docml_contract.jobs import Tracking
from docml_trainer.training.tracking import Tracker, resolve_key
from tests.docml_trainer.jobfolder import TRAINER_IMAGE
from tests.docml_trainer.trainings import training_job

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


def test_an_offline_run_is_kept_with_the_results(tmp_path: Path) -> None:
    job = training_job(tmp_path, tracking=tracking("offline"))
    done = job.run()
    assert done.returncode == 0, done.stderr
    kept = [entry.path for entry in job.result().files if entry.path.startswith("wandb/offline-run-")]
    assert any(path.endswith(".wandb") for path in kept)


def test_disabled_starts_nothing(tmp_path: Path) -> None:
    tracker = Tracker.start(tracking("disabled"), tmp_path / "tracking", run_id="a", config={})
    tracker.log({"epoch": 1})
    tracker.finish({})
    assert tracker.offline_runs() == []


def test_a_key_may_be_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with moto.mock_aws():
        secrets = boto3.client("secretsmanager")
        secrets.create_secret(Name="team/wandb", SecretString=json.dumps({"key": "abc"}))
        secrets.create_secret(Name="plain", SecretString="def")
        assert resolve_key("secretsmanager:team/wandb#key") == "abc"
        assert resolve_key("secretsmanager:plain") == "def"
    assert resolve_key("ghi") == "ghi"
