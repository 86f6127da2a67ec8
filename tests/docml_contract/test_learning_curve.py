"""Parts of documents, and forecasts from scores on them."""

import numpy as np
import pytest

from docml_contract.jobs import CURVE_PARTS, TrainPart
from docml_contract.learning_curve import describe_curve, draw_part, forecast

SIZES = np.array([400, 200, 200, 100, 100, 100, 100, *[50] * 8])


@pytest.mark.parametrize("exponent", [-0.25, 0.25, 0.5])
def test_a_power_law_without_noise_is_continued(exponent: float) -> None:
    slope = 0.1 if exponent < 0 else -1.0
    value, low, high = forecast(SIZES, 0.4 + slope * SIZES**-exponent, 800)
    assert value == pytest.approx(0.4 + slope * 800**-exponent, abs=1e-3)
    assert low <= value <= high
    assert high - low < 0.01


def test_noise_widens_the_interval_and_more_documents_never_make_it_worse() -> None:
    random = np.random.default_rng(0)
    scores = 0.8 - 0.5 * SIZES**-0.5
    narrow, wide = (forecast(SIZES, scores + random.normal(0, spread, len(SIZES)), 800) for spread in (0.005, 0.05))
    assert wide[2] - wide[1] > 3 * (narrow[2] - narrow[1])
    falling = forecast(SIZES, 0.5 + SIZES**-0.5, 800)
    assert falling[0] == pytest.approx(np.average(0.5 + SIZES**-0.5, weights=SIZES**0.5))
    assert 0 <= forecast(SIZES, np.ones(len(SIZES)), 800)[2] <= 1


def test_no_bound_lies_beyond_what_a_score_can_be() -> None:
    rising, falling = np.array([1.0, 1.0, 0.8, 0.6, 0.6, 0.3, 0.3]), np.zeros(7)
    sizes = np.array([104, 52, 52, 26, 26, 13, 13])
    for scores in (rising, falling):
        value, low, high = forecast(sizes, scores, 208)
        assert 0 <= low <= value <= high <= 1


def test_parts_do_not_overlap_and_have_about_every_labels_share() -> None:
    labels = np.repeat([0, 1, 2], [200, 100, 21])
    for divisor in (2, 4, 8):
        parts = [draw_part(labels, divisor, index) for index in range(divisor)]
        assert sorted(np.concatenate(parts).tolist()) == list(range(321))
        sizes = [TrainPart(divisor=divisor, index=index).size(321) for index in range(divisor)]
        assert [len(part) for part in parts] == sizes
        for part in parts:
            assert np.abs(np.bincount(labels[part], minlength=3) / len(part) - [0.623, 0.312, 0.065]).max() < 0.02
    assert [str(part) for part in CURVE_PARTS[:3]] == ["part 1 of 2", "part 2 of 2", "part 1 of 4"]


def test_a_curve_says_what_there_is_and_what_is_expected() -> None:
    by_label = np.array([[0.8, 0.6], [0.9, 0.7], [0.7, 0.5], [0.6, 0.4]])
    curve = describe_curve(np.array([100, 100, 50, 50]), by_label, ["letter", "memo"])
    assert curve["points"] == [[100, 0.7], [100, 0.8], [50, 0.6], [50, 0.5]]
    assert curve["documents"] == 200
    assert curve["f1_macro"]["now"] == pytest.approx(0.75), "the mean of all trainings on everything"
    assert curve["labels"]["memo"]["now"] == pytest.approx(0.65)
