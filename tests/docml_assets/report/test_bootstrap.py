"""Intervals hold what they promise. The whole simulation is bench/report_statistics.py; this is a quick part of it."""

import numpy as np

from bench.report_statistics import simulate_coverage, simulate_verdicts
from docml_assets.report.bootstrap import RESAMPLES, interval, resampled_f1
from tests.docml_assets.report.samples import predictions_table, read


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
