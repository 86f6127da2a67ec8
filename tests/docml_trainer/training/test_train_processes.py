"""Several processes and accumulation: the same documents in every optimizer step, and the same losses and weights."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import fetch, load_split
from docml_trainer.training.launch import GRACE_SECONDS, grace, meeting_port
from tests.docml_trainer.jobfolder import TRAINER_IMAGE, JobFolder
from tests.docml_trainer.trainings import BAG, TRANSFORMER, run_here, training_job, weights

GLOBAL_BATCH = 8
DOCUMENTS = (157, 45)  # 20 optimizer steps an epoch, the last one of 5 documents; neither divides among processes
TOLERANCE = {"float32": 1e-6, "float64": 1e-9}
COMBINATIONS = [(accumulation, processes) for processes in (1, 2) for accumulation in (1, 2, 4)]


@pytest.fixture(scope="module", autouse=True)
def _no_gpu() -> Iterator[None]:
    """Wherever the tests run: these are about several processes of a machine without a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        yield


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_together(jobs: list[JobFolder], processes: int) -> None:
    """All jobs, one after the other, in the same `processes` processes."""
    port = str(free_port())
    started = []
    for rank in range(processes):
        environment = jobs[0].environment(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )  # fmt: skip
        environment["PYTHONPATH"] = os.pathsep.join([str(TRAINER_IMAGE.parent), str(TRAINER_IMAGE)])
        command = [sys.executable, "-m", "tests.docml_trainer.trainings_together", *(str(job.base) for job in jobs)]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, outputs


def logits(job: JobFolder) -> np.ndarray:
    """float[documents, labels] of the trained model over the validation documents, one at a time."""
    data = load_split(job.channel("valid"), "")
    collate = Collator(data.features, forward_parameters=["input_ids", "attention_mask"])
    namespace: dict[str, object] = {}
    exec(BAG, namespace)
    trained = weights(job)
    model = namespace["Bag"](3, 0.0, trained["classifier.weight"].dtype)  # type: ignore[operator]
    model.load_state_dict(trained)
    batches = [collate(fetch(data, np.array([row]))) for row in range(len(data))]
    with torch.no_grad():
        return np.concatenate([model(b["input_ids"], b["attention_mask"])["logits"].numpy() for b in batches])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, int], JobFolder]:
    """(dtype, accumulation, processes) -> a finished training of 20 optimizer steps."""
    base = tmp_path_factory.mktemp("together")
    jobs = {}
    for dtype in TOLERANCE:
        for accumulation, processes in COMBINATIONS:
            hyperparameters = {
                "epochs": 1,
                "dtype": dtype,
                "train_batch_size": GLOBAL_BATCH // (accumulation * processes),
                "gradient_accumulation_steps": accumulation,
                "eval_batch_size": 7,
                "mixed_precision": "fp32",
            }
            folder = base / f"{dtype}-{accumulation}-{processes}"
            jobs[dtype, accumulation, processes] = training_job(
                folder, hyperparameters=hyperparameters, documents=DOCUMENTS
            )
    with pytest.MonkeyPatch.context() as patch:
        for (_, _, processes), job in jobs.items():
            if processes == 1:
                assert run_here(job, patch) == 0
    run_together([job for (_, _, processes), job in jobs.items() if processes == 2], 2)
    return jobs


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("accumulation", "processes"), COMBINATIONS[1:])
def test_a_step_is_a_step_however_it_is_cut(
    trained: dict[tuple[str, int, int], JobFolder], dtype: str, accumulation: int, processes: int
) -> None:
    reference, job = trained[dtype, 1, 1], trained[dtype, accumulation, processes]
    expected, found = (json.loads((each.output / "history.json").read_text())[0] for each in (reference, job))
    assert len(found["step_losses"]) == 20
    difference = np.abs(np.array(found["step_losses"]) - np.array(expected["step_losses"])).max()
    assert difference <= TOLERANCE[dtype]
    assert found["train_loss"] == pytest.approx(expected["train_loss"], abs=TOLERANCE[dtype])
    assert found["valid_loss"] == pytest.approx(expected["valid_loss"], abs=TOLERANCE[dtype] * 10)

    ours, theirs = logits(job), logits(reference)
    same = ours.argmax(axis=1) == theirs.argmax(axis=1)
    two = np.sort(theirs, axis=1)[:, -2:]
    assert np.all(same | (two[:, 1] - two[:, 0] < 1e-5))
    assert found["valid_f1"] == expected["valid_f1"] or not same.all()


def test_the_launcher_runs_the_processes_of_the_job(tmp_path: Path) -> None:
    job = training_job(tmp_path, documents=(61, 31), use_distributed=True, cpu_processes=2)
    done = job.run()
    assert done.returncode == 0, done.stderr
    assert "2 process(es) on cpu" in done.stdout
    assert len(done.events("epoch")) == 2, "the first process alone reports"
    assert json.loads((job.output / "statistics.json").read_text())["hardware"]["processes"] == 2


def test_a_parameter_without_a_gradient_is_named(tmp_path: Path) -> None:
    functions = (
        TRANSFORMER
        + """
import torch

class Own(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.bert = transformers.BertModel(config)
        self.classifier = torch.nn.Linear(32, config.num_labels)

    def forward(self, input_ids, attention_mask):
        return {"logits": self.classifier(self.bert(input_ids, attention_mask).last_hidden_state[:, 0])}

transformers.BertForSequenceClassification = Own
"""
    )
    job = training_job(tmp_path, functions, model="bert", use_distributed=True, cpu_processes=2)
    done = job.run()
    assert done.returncode == 1
    assert "does not use bert.pooler.dense.weight, bert.pooler.dense.bias; training in several processes" in job.failure
    assert "add_pooling_layer=False" in job.failure


DIES = """
import os

def die_in_training(original):
    def forward(self, input_ids, attention_mask):
        if self.training and os.environ.get("RANK") == "1":
            {how}
        return original(self, input_ids, attention_mask)
    return forward

Bag.forward = die_in_training(Bag.forward)
"""


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (
            "raise ArithmeticError('broken document')",
            "user_defined_funcs.py: forward() of the loaded model failed in epoch 1, step 1: ArithmeticError: broken document (",
        ),
        (
            "os.kill(os.getpid(), 9)",
            "training process 1 was killed by SIGKILL (SIGKILL usually means that the machine ran out",
        ),
    ],
    ids=["raises", "killed"],
)
def test_a_process_that_dies_takes_the_job_down(tmp_path: Path, how: str, reason: str) -> None:
    job = training_job(tmp_path, BAG + DIES.format(how=how), use_distributed=True, cpu_processes=2)
    done = job.run(timeout=120)
    assert done.returncode == 1
    assert job.failure.startswith(reason)
    if "raise" in how:
        assert "in forward: raise ArithmeticError" in job.failure, "with the experimenter's own line"


def test_sigterm_reaches_all_processes_and_they_save(tmp_path: Path) -> None:
    slow = BAG.replace("        mask = ", "        import time; time.sleep(0.05)\n        mask = ")
    job = training_job(tmp_path, slow, hyperparameters={"epochs": 30}, use_distributed=True, cpu_processes=2)
    command = [sys.executable, "-m", "docml_trainer", "train"]
    with subprocess.Popen(command, env=job.environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Epoch 1/30"):
                break
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(60) == 143
    assert "Stopped by SIGTERM after a checkpoint" in rest
    assert not job.failure
    assert list(job.folders.checkpoints.glob("*/step-*/MANIFEST.json"))


def test_hosts_of_one_job_meet_and_other_jobs_do_not(tmp_path: Path) -> None:
    job, same_work = (training_job(tmp_path / name) for name in ("first", "second"))
    assert meeting_port(job.folders) == meeting_port(same_work.folders)
    same_work.write_hyperparameters({"learning_rate": 0.01})  # another trial of one search
    assert meeting_port(job.folders) != meeting_port(same_work.folders)


def test_the_grace_period_is_told_to_a_torch_that_knows_the_setting() -> None:
    @dataclass
    class Older:  # as in torch 2.8, which the default image brings
        max_restarts: int = 3

    @dataclass
    class Newer(Older):
        shutdown_timeout: int | None = None

    assert grace(Older) == {}
    assert grace(Newer) == {"shutdown_timeout": GRACE_SECONDS}
