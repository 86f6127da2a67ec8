"""Scores in corners; their values in general are recomputed in test_build."""

import numpy as np
import pytest

from docml_assets.report.statistics import calibration, confusion_matrix, label_scores, macro_f1


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


def test_calibration_of_a_sure_and_right_model() -> None:
    error, bins = calibration(np.ones(5), np.ones(5, dtype=bool))
    assert error == 0
    assert bins[-1].count == 5
    assert bins[0].confidence is None
