import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from docml_trainer.training.metrics import scores


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
