"""`python -m docml_trainer train`: what comes out, and the one reason that is left where something is wrong."""

import json
import re
from pathlib import Path

import pytest
import torch

from docml_contract.log_lines import METRIC_DEFINITIONS
from tests.docml_trainer.trainings import BAG, LABELS, records, run_here, training_job, weights


def test_a_training_as_a_job_runs_it(tmp_path: Path) -> None:
    job = training_job(tmp_path, hyperparameters={"epochs": 3, "checkpoint_every_steps": 3, "max_length": 40})
    done = job.run()
    assert done.returncode == 0, done.stderr
    result = job.result()
    assert {entry.path for entry in result.files} == {
        *("model.pt", "model.safetensors", "history.json", "statistics.json", "curves.png", "export.json")
    }
    history = json.loads((job.output / "history.json").read_text())
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert all(len(record["step_losses"]) == 8 for record in history)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    best = max(history, key=lambda record: (record["valid_f1"], -record["valid_loss"]))
    assert result.facts["best_epoch"] == best["epoch"]
    assert result.facts["valid_f1"] == best["valid_f1"]

    events = done.events("epoch")
    assert [event["epoch"] for event in events] == [1, 2, 3]
    assert events[-1]["valid_f1"] == best["valid_f1"]
    for name, regex in METRIC_DEFINITIONS:
        found = [float(match) for match in re.findall(regex, done.stdout)]
        assert found == [event[name] for event in events]

    card = json.loads((job.output / "statistics.json").read_text())
    assert card["data_versions"] == {"encoded_splits": "0" * 64}
    assert card["provenance"] == {"git_revision": "abc1234"}
    assert card["hyperparameters"]["max_length"] == 40
    assert card["hyperparameters"]["warmup_ratio"] == 0.1
    assert card["parameters"] == {"total": 60 * 8 + 8 * 3 + 3, "trainable": 60 * 8 + 8 * 3 + 3}
    assert card["hardware"]["threads_per_process"] == 1
    assert card["export"]["relative_difference"]
    export = json.loads((job.output / "export.json").read_text())
    assert export["input_keys"] == ["input_ids", "attention_mask"]
    assert export["labels"] == list(LABELS)
    assert export["fixed_shape"] is None
    assert len(export["cases"]) >= 9


def test_equal_trainings_end_with_equal_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("docml_trainer.training.results.SECONDS_BETWEEN_LINES", 0.0)
    jobs = [training_job(tmp_path / name, hyperparameters={"dropout": 0.2}) for name in ("one", "two")]
    for job in jobs:
        assert run_here(job, monkeypatch) == 0
    assert jobs[0].result().data_version == jobs[1].result().data_version
    assert records(jobs[0]) == records(jobs[1])
    said = capsys.readouterr().out
    assert re.search(r'"what": "validation of epoch 1", "done": \d+, "total": \d+, "unit": "documents"', said)
    other = training_job(tmp_path / "other", hyperparameters={"dropout": 0.2, "seed": 14})
    assert run_here(other, monkeypatch) == 0
    assert other.result().data_version != jobs[0].result().data_version


def test_each_model_of_a_comparison_sees_its_own_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = training_job(tmp_path / "compared", models=("bag", "other"), model="bag")
    alone = training_job(tmp_path / "alone")
    assert run_here(compared, monkeypatch) == 0
    assert run_here(alone, monkeypatch) == 0
    assert all(torch.equal(weights(compared)[name], tensor) for name, tensor in weights(alone).items())


def test_a_trial_of_a_tuning_takes_the_tuners_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training_job(tmp_path)
    job.write_hyperparameters({"learning_rate": 1e-3, "train_batch_size": "16", "_tuning_objective_metric": "valid_f1"})
    assert run_here(job, monkeypatch) == 0
    used = json.loads((job.output / "statistics.json").read_text())["hyperparameters"]
    assert used["learning_rate"] == 1e-3
    assert used["train_batch_size"] == 16
    assert used["epochs"] == 2, "constants of the spec stay"
    assert "_tuning_objective_metric" not in used


def test_early_stopping_and_the_best_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training_job(
        tmp_path,
        hyperparameters={"epochs": 40, "early_stopping_patience": 2, "learning_rate": 0.3, "lr_scheduler": "constant"},
    )
    assert run_here(job, monkeypatch) == 0
    history = records(job)
    best = job.result().facts["best_epoch"]
    assert len(history) == best + 2 < 40
    ranked = sorted(history, key=lambda record: (record["valid_f1"], -record["valid_loss"]), reverse=True)
    assert ranked[0]["epoch"] == best


def test_every_option_of_the_loop_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "class_weights": "balanced",
        "label_smoothing": 0.1,
        "head_learning_rate": 0.2,
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "max_grad_norm": 0,
        "gradient_accumulation_steps": 2,
        "lr_scheduler": "cosine",
    }
    job = training_job(tmp_path, hyperparameters=options)
    assert run_here(job, monkeypatch) == 0
    assert "does not support it" in capsys.readouterr().out
    assert weights(job)["embedding.weight"].dtype == torch.float32


FORWARD = '        return {"logits": self.classifier(self.dropout(pooled))}'
LOAD = "    return Bag(context.num_labels,"


@pytest.mark.parametrize(
    ("change", "hyperparameters", "reason"),
    [
        pytest.param((FORWARD, FORWARD.replace("self.classifier", "float('nan') * self.classifier")), {}, r"the training loss became nan in epoch 1, step 1 \(lower learning_rate", id="nan-loss"),
        pytest.param((FORWARD, FORWARD.replace("pooled))", "pooled)) + (self.classifier.weight * 0).sqrt().sum()")), {}, r"the gradient exploded: its norm became (inf|nan) in epoch 1, step 1 \(lower learning_rate", id="exploding"),
        pytest.param((FORWARD, FORWARD.replace("pooled", "pooled.expand(2**50, -1, -1).clone()")), {}, r"out of memory: .*lower train_batch_size and raise gradient_accumulation_steps", id="out-of-memory"),
        pytest.param((LOAD, "    return Bag(2,"), {}, r"logits of shape \[2, 2\] for 2 documents; expected \[2, 3\], as the data have 3 labels \(pass num_labels=context.num_labels\)", id="wrong-labels"),
        pytest.param((FORWARD, FORWARD.replace('"logits"', '"scores"')), {}, r"forward\(\) of the loaded model returned keys scores; expected an output with .logits", id="no-logits"),
        pytest.param((FORWARD, "        raise KeyError('vocabulary')"), {}, r"forward\(\) of the loaded model failed: KeyError: 'vocabulary' \(user_defined_funcs.py, line 16", id="forward-raises"),
        pytest.param((LOAD, "    return None and Bag(context.num_labels,"), {}, r"load_model returned NoneType None; expected a torch.nn.Module", id="no-model"),
        pytest.param(('["input_ids", "attention_mask"]', '["input_ids", "mask"]'), {}, r"ordered_input_keys returned mask, which are not features", id="wrong-keys"),
        pytest.param(("", ""), {"learning_rate": -1}, r"hyperparameter learning_rate = -1: Input should be greater than 0", id="out-of-range"),
    ],
)  # fmt: skip
def test_one_clear_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, str],
    hyperparameters: dict[str, float],
    reason: str,
) -> None:
    functions = BAG.replace(*change)
    job = training_job(tmp_path, functions, hyperparameters=hyperparameters)
    assert run_here(job, monkeypatch) == 1
    assert re.search(reason, job.failure), job.failure
    assert "\n" not in job.failure, "one reason, no traceback"
    assert not (job.output / "OUTPUT.json").exists()


def test_fp16_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    job = training_job(tmp_path, hyperparameters={"mixed_precision": "fp16"})
    assert run_here(job, monkeypatch) == 1
    assert job.failure == "mixed_precision = fp16 needs a GPU, and there is none; expected auto, fp32 or bf16"


def test_a_split_that_is_missing_is_no_reason_to_use_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training_job(tmp_path)
    (job.channel("valid") / "dataset_info.json").unlink()
    assert run_here(job, monkeypatch) == 1
    assert "input/data/valid: no data set; expected the split that preparation wrote" in job.failure


def test_an_unexpected_error_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = training_job(tmp_path)
    monkeypatch.setattr("docml_trainer.training.results.plot_curves", lambda *_: 1 / 0)
    assert run_here(job, monkeypatch) == 1
    assert job.failure.startswith("ZeroDivisionError: division by zero\n\n")
    assert "in write_results" in job.failure
