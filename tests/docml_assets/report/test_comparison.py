"""Verdicts, and what leads to them."""

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from docml_assets.report.comparison import FourCounts, disagreements, holm, mcnemar_mid_p, verdict
from docml_assets.report.schema import NO_DIFFERENCE
from tests.docml_assets.report.samples import predictions_table, read


@pytest.mark.parametrize(("only_a", "only_b"), [(3, 9), (9, 3), (0, 6), (40, 61)])
def test_mid_p_is_the_exact_p_less_the_observed_point(only_a: int, only_b: int) -> None:
    from scipy.stats import binom

    exact = mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue
    expected = exact - binom.pmf(min(only_a, only_b), only_a + only_b, 0.5)
    assert mcnemar_mid_p(only_a, only_b) == pytest.approx(expected, abs=1e-12)


def test_mid_p_without_difference() -> None:
    assert mcnemar_mid_p(0, 0) == mcnemar_mid_p(5, 5) == 1.0


@pytest.mark.parametrize("p_values", [[0.01], [0.04, 0.01, 0.03], [0.9, 0.8, 0.7], [0.02, 0.02, 0.02, 0.5]])
def test_holm(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


FOUR = FourCounts(both_correct=50, only_a=30, only_b=10, both_wrong=10)


@pytest.mark.parametrize(
    ("bounds", "p", "expected"),
    [
        ((0.01, 0.2), 0.01, "a"),
        ((0.01, 0.2), 0.05, NO_DIFFERENCE),  # the test does not say so
        ((-0.01, 0.2), 0.01, NO_DIFFERENCE),  # the interval does not say so
        ((0.0, 0.2), 0.01, NO_DIFFERENCE),  # 0 is not excluded
        ((-0.2, -0.01), 0.01, NO_DIFFERENCE),  # they say opposite things
    ],
)
def test_verdict_needs_test_and_interval(bounds: tuple[float, float], p: float, expected: str) -> None:
    assert verdict("a", "b", FOUR, bounds, p) == expected


def test_verdict_for_the_second_model() -> None:
    four = FourCounts(both_correct=50, only_a=10, only_b=30, both_wrong=10)
    assert verdict("a", "b", four, (-0.2, -0.01), 0.01) == "b"


def test_disagreements_begin_with_those_that_some_model_has_right() -> None:
    predictions = read(predictions_table(100, ("x", "y")))
    apart = disagreements(predictions)
    said = np.stack(list(predictions.predicted.values()))[:, apart]
    assert (said[0] != said[1]).all()
    right = (said == predictions.truth[apart]).any(axis=0)
    assert right.tolist() == sorted(right.tolist(), reverse=True)
    assert 0 < right.sum() < len(right)
