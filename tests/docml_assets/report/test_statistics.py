"""Scores equal scikit-learn's, and intervals hold what they promise (all of it: bench/report_statistics.py)."""

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve

from bench.report_statistics import simulate_coverage, simulate_verdicts
from docml_assets.report.statistics import (
    RESAMPLES,
    calibration,
    confusion_matrix,
    interval,
    label_scores,
    macro_f1,
    resampled_f1,
)
from tests.docml_assets.report.samples import predictions_table, read


def test_a_label_that_is_only_predicted_does_not_enter_macro_f1() -> None:
    scores = label_scores(confusion_matrix(np.array([0, 0, 1]), np.array([0, 2, 1]), 3))
    assert scores.f1.tolist() == pytest.approx([2 / 3, 1, 0])
    assert scores.f1_macro == pytest.approx((2 / 3 + 1) / 2)
    assert scores.present.tolist() == [True, True, False]


def test_macro_f1_of_many_counts_at_once() -> None:
    random = np.random.default_rng(0)
    truth, said = random.integers(0, 4, (5, 30)), random.integers(0, 4, (5, 30))
    matrices = [confusion_matrix(t, s, 4) for t, s in zip(truth, said, strict=True)]
    correct, support, predicted = (
        np.array([f(matrix) for matrix in matrices], dtype=float)
        for f in (np.diag, lambda m: m.sum(axis=1), lambda m: m.sum(axis=0))
    )
    assert macro_f1(correct, support, predicted) == pytest.approx([label_scores(m).f1_macro for m in matrices])


def test_calibration_bins_are_closed_on_the_right() -> None:
    edges = np.array([0.0, 1 / 15, 2 / 15, 1.0])
    _, bins = calibration(edges, np.ones(4, dtype=bool))
    assert [index for index, entry in enumerate(bins) for _ in range(entry.count)] == [0, 0, 1, 14]


def test_calibration_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    probability = np.append(random.uniform(0.3, 1, 500), np.arange(1, 16) / 15)
    right = random.uniform(size=len(probability)) < probability
    _, bins = calibration(probability, right)
    accuracy, confidence = calibration_curve(right, probability, n_bins=15, strategy="uniform")
    filled = [entry for entry in bins if entry.count]
    assert [entry.accuracy for entry in filled] == pytest.approx(accuracy, abs=1e-12)
    assert [entry.confidence for entry in filled] == pytest.approx(confidence, abs=1e-12)


def test_the_interval_is_scipys() -> None:
    """Of data that lie evenly on both sides of their mean: there scipy's BCa has no acceleration, and is the bias-corrected interval."""
    half = np.random.default_rng(0).exponential(size=40)
    data = np.concatenate([half, -half])
    found = stats.bootstrap((data,), np.mean, method="BCa", n_resamples=RESAMPLES, rng=np.random.default_rng(1))
    expected = found.confidence_interval
    assert interval(float(data.mean()), found.bootstrap_distribution) == pytest.approx((expected.low, expected.high))


def test_calibration_of_a_sure_and_right_model() -> None:
    error, bins = calibration(np.ones(5), np.ones(5, dtype=bool))
    assert error == 0
    assert bins[-1].count == 5
    assert bins[0].confidence is None


def test_intervals_cover() -> None:
    """150 simulations at 95 %: fewer than 88 % or more than 99.5 % would be a chance of 1 in 1,000."""
    assert 0.88 <= simulate_coverage(documents=400, labels=4, skewed=False, simulations=150) <= 0.995


def test_verdicts_are_rarely_false_and_mostly_found() -> None:
    assert simulate_verdicts(only_a=0.1, only_b=0.1, simulations=150) <= 0.12
    assert simulate_verdicts(only_a=0.14, only_b=0.06, simulations=60) >= 0.7


def test_every_model_is_scored_on_the_same_resamples() -> None:
    table = predictions_table(50, ("a", "b"))
    copied = table.set_column(4, "b_prediction", table["a_prediction"])
    resampled = resampled_f1(read(copied))
    assert np.array_equal(resampled["a"], resampled["b"])
    assert interval(0.0, resampled["a"] - resampled["b"]) == (0.0, 0.0)


def test_resamples_do_not_depend_on_the_other_models() -> None:
    alone, together = (resampled_f1(read(predictions_table(50, models))) for models in (("a",), ("a", "b")))
    assert np.allclose(alone["a"], together["a"], atol=1e-15, rtol=0)


def test_one_document() -> None:
    resampled = resampled_f1(read(predictions_table(1)))["tiny"]
    assert len(resampled) == RESAMPLES
    assert len(set(resampled.tolist())) == 1


def test_an_interval_at_the_edge() -> None:
    """An estimate that no resample reaches stays within the resamples' range."""
    values = np.linspace(0.2, 0.4, RESAMPLES)
    assert interval(0.9, values) == (0.4, 0.4) or interval(0.9, values)[1] <= 0.4
    assert interval(0.1, values)[0] >= 0.2
