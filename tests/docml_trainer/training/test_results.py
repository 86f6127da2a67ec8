"""How it behaves."""

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from docml_contract.log_lines import METRIC_DEFINITIONS, TRAINER_METRICS, metric_line, metric_regex
from docml_trainer.training.results import EpochLines, is_better, plot_curves, scores


def record(epoch: int, f1: float, loss: float) -> dict[str, object]:
    return {"epoch": epoch, "valid_f1": f1, "valid_loss": loss}


def test_better_is_a_higher_macro_f1_and_at_a_tie_a_lower_loss() -> None:
    assert is_better(record(1, 0.0, 9.0), None)
    assert is_better(record(2, 0.6, 9.0), record(1, 0.5, 0.1))
    assert is_better(record(2, 0.5, 0.1), record(1, 0.5, 0.2))
    assert not is_better(record(2, 0.5, 0.2), record(1, 0.5, 0.2))
    assert not is_better(record(2, 0.4, 0.0), record(1, 0.5, 0.2))


def test_every_metric_is_read_back_exactly() -> None:
    values = dict(zip(TRAINER_METRICS, (1e-05, 0.8312, 1.0, 1 / 3, 0.0, 12.5, 1e16), strict=True))
    line = metric_line(values)
    assert line.startswith("docml: valid_f1=1e-05; ")
    for name, regex in METRIC_DEFINITIONS:
        assert re.compile(regex).groups == 1
        assert [float(found) for found in re.findall(regex, line)] == [values[name]]
    assert not re.findall(metric_regex("f1"), line)


def test_progress_lines_come_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("docml_trainer.training.results.time.monotonic", lambda: now[0])
    lines = EpochLines(2, 3, 50)
    for step in range(1, 26):
        now[0] += 1.0
        lines.step(step, 0.5, 1e-5, documents=8, tokens=80)
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if not line.startswith("DOCML")] == [
        "Epoch 2/3, step 10/50: loss 0.5000, learning rate 1e-05, 8.0 documents a second",
        "Epoch 2/3, step 20/50: loss 0.5000, learning rate 1e-05, 8.0 documents a second",
    ]
    assert lines.speed()["tokens_per_second"] == 80


def test_curves(tmp_path: Path) -> None:
    records = [
        record(epoch, 0.5, 1.0)
        | {"train_loss": 1.0, "valid_accuracy": 0.5, "learning_rate": 1e-5, "step_losses": [2.0, 1.0]}
        for epoch in (1, 2, 3)
    ]
    plot_curves(records, 2, "EXP-1, run 1: bag", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = int(random.integers(2, 30))
    truth = random.integers(0, labels, 200) // 2  # the upper half has no support
    predicted = np.where(random.random(200) < 0.6, truth, random.integers(0, labels, 200))
    found = scores(predicted, truth)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-12)
    expected = f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    assert found["f1"] == pytest.approx(expected, abs=1e-12)


def test_a_label_that_is_never_predicted_counts_as_zero() -> None:
    assert scores([0, 0, 0, 0], [0, 0, 1, 1]) == {"accuracy": 0.5, "f1": pytest.approx(1 / 3)}


def test_a_user_without_a_home_to_write_to_gets_scores_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluate.module.config.HF_METRICS_CACHE", "/proc/nobody/.cache")
    assert scores([0, 1], [0, 1]) == {"accuracy": 1.0, "f1": 1.0}
