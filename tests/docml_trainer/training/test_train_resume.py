"""Killed and started again: the weights and the history of a training that nothing disturbed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.docml_trainer.jobfolder import JobFolder
from tests.docml_trainer.trainings import BAG, records, run_here, training_job, weights

# Dropout, so that random states count; slow enough to be killed in the middle of something.
OPTIONS = {
    "epochs": 4,
    "dropout": 0.3,
    "checkpoint_every_steps": 3,
    "train_batch_size": 4,
    "gradient_accumulation_steps": 2,
}
SLOW = BAG.replace("        mask = ", "        import time; time.sleep(0.02)\n        mask = ")


def start(job: JobFolder) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "docml_trainer", "train"],
        env=job.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_training(process: "subprocess.Popen[str]") -> str:
    """Read until the loop begins; returns what was printed."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith(("Training ", "Resumed ")):
            return said
    return said


def same(one: JobFolder, other: JobFolder) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    job = training_job(tmp_path_factory.mktemp("undisturbed"), SLOW, hyperparameters=OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        assert run_here(job, patch) == 0
    return job


def disturb(job: JobFolder, number: signal.Signals, times: int, seed: int) -> list[int]:
    """Kill the training `times` times at random moments, then let it end. Returns the exit codes."""
    chance = random.Random(seed)
    codes = []
    for _ in range(times):
        with start(job) as process:
            wait_for_training(process)
            time.sleep(chance.uniform(0.0, 0.9))
            process.send_signal(number)
            process.communicate(timeout=60)
            codes.append(process.returncode)
    done = job.run()
    assert done.returncode == 0, done.stderr
    return codes


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=["SIGTERM", "SIGKILL"])
def test_killed_and_resumed(tmp_path: Path, undisturbed: JobFolder, number: signal.Signals, code: int) -> None:
    job = training_job(tmp_path, SLOW, hyperparameters=OPTIONS)
    assert disturb(job, number, times=1, seed=int(number)) == [code]
    assert same(job, undisturbed)
    assert records(job) == records(undisturbed)
    assert job.result().data_version == undisturbed.result().data_version


@pytest.mark.slow  # ten times by each signal
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_killed_ten_times(tmp_path: Path, undisturbed: JobFolder, number: signal.Signals) -> None:
    for round_ in range(2):
        job = training_job(tmp_path / str(round_), SLOW, hyperparameters=OPTIONS)
        disturb(job, number, times=5, seed=100 * int(number) + round_)
        assert same(job, undisturbed)
        assert records(job) == records(undisturbed)


class Crash(BaseException):
    """What no code of the trainer catches."""


@pytest.mark.parametrize("step", [1, 4, 8, 9, 14, 23])
def test_a_crash_at_any_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: JobFolder,
    step: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from docml_trainer.train import Training

    job = training_job(tmp_path, SLOW, hyperparameters=OPTIONS)
    original = Training.optimizer_step

    def crash(self: Training, *arguments: object) -> object:
        if self.progress.total_steps == step:
            raise Crash
        return original(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Training, "optimizer_step", crash)
        with pytest.raises(Crash):
            run_here(job, monkeypatch)
    assert run_here(job, monkeypatch) == 0
    checkpointed = max(step - step % 3, step - step % 8)
    resumed = f"Resumed from step-{checkpointed:08d}" if checkpointed else "Training bag"
    assert resumed in capsys.readouterr().out
    assert same(job, undisturbed)
    assert records(job) == records(undisturbed)


def test_a_training_that_ended_before_its_export_is_only_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    job = training_job(tmp_path, SLOW, hyperparameters=OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr("docml_trainer.training.results.export", lambda *_: 1 / 0)
        assert run_here(job, monkeypatch) == 1
    capsys.readouterr()
    assert run_here(job, monkeypatch) == 0
    assert "Epoch" not in capsys.readouterr().out
    assert same(job, undisturbed)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    job = training_job(tmp_path, SLOW, hyperparameters=OPTIONS)
    assert run_here(job, monkeypatch) == 0
    newest = max(job.folders.checkpoints.glob("*/step-*"))
    (newest / "state.pt").write_bytes(b"partial")
    assert run_here(job, monkeypatch) == 0
    assert "Resumed from step-00000030: epoch 4, step 6" in capsys.readouterr().out
    assert same(job, undisturbed)


def test_other_hyperparameters_start_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = training_job(tmp_path)
    assert run_here(job, monkeypatch) == 0
    job.write_hyperparameters({"learning_rate": 0.01, "_tuning_objective_metric": "valid_f1"})
    capsys.readouterr()
    assert run_here(job, monkeypatch) == 0
    assert "Resumed" not in capsys.readouterr().out
