"""The decision policy: what it promises is kept. `policies.py` simulates as many as the figures of docs/benchmarks.md are made of."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from docml_assets.report.policy import (
    allowed_errors,
    best_temperature,
    best_threshold,
    choose_policy,
    documents_needed,
    lower_bound,
    model_policy,
)
from docml_assets.report.statistics import calibration
from docml_contract.policy import PolicyCount, confidences
from tests.docml_assets.report.policies import ACCURACIES, MARGINS, OVERCONFIDENCE, SIZES, SimulatedModel, simulate
from tests.docml_assets.report.samples import LABELS, predictions_table, report


def answers(size: int, accuracy: float = 0.9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    return SimulatedModel(MARGINS[accuracy]).answer(size, np.random.default_rng(seed))


def table(size: int, accuracy: float, seed: int) -> pa.Table:
    """What the inference job says of a split."""
    probabilities, truth = answers(size, accuracy, seed)
    return pa.table(
        {
            "artifact_guid": [f"doc-{index:06d}" for index in range(size)],
            "label": [LABELS[index] for index in truth],
            "tiny_probabilities": pa.FixedSizeListArray.from_arrays(probabilities.astype(np.float32).reshape(-1), 4),
        }
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_the_promised_precision_is_violated_in_at_most_5_percent(size: int, accuracy: float) -> None:
    """Some of the 2,000 policies that `policies.py` makes; so few violations in so many are expected once in a thousand at 5 %."""
    policies = 20
    found = simulate(size, accuracy, 0.95, policies)
    assert found.violations <= stats.binom.isf(0.001, policies, 0.05)
    assert found.holding > policies / 2 or accuracy == 0.7 or size == 200


def test_a_confidence_that_says_nothing_and_a_precision_just_below_the_target_are_confirmed_in_5_percent() -> None:
    """The worst case: whatever threshold is chosen, the true precision is .899 where .9 is promised."""
    random = np.random.default_rng(5)
    confirmed, policies, size = 0, 200, 1000

    def split() -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
        truth = random.integers(0, 2, size)
        said = np.where(random.random(size) < 0.899, truth, 1 - truth)
        sure = random.uniform(0.5, 1.0, size)
        return np.where(said[:, None] == np.arange(2), sure[:, None], 1 - sure[:, None]), truth

    for _ in range(policies):
        confirmed += choose_policy(0.9, *split(), *split()).holds
    assert confirmed <= stats.binom.isf(0.001, policies, 0.05)


def test_the_temperature_takes_back_what_the_model_is_too_sure_of() -> None:
    assert best_temperature(*answers(5000)) == pytest.approx(OVERCONFIDENCE, rel=0.1)


def test_the_bound_is_exact() -> None:
    assert lower_bound(0, 0) == lower_bound(0, 7) == 0.0
    for right, documents in ((59, 59), (95, 100), (180, 200)):
        expected = stats.binomtest(right, documents, alternative="greater").proportion_ci(0.95, method="exact").low
        assert lower_bound(right, documents) == pytest.approx(expected)
    documents = np.arange(1, 400)
    for target in (0.8, 0.95):
        for number, errors in zip(documents, allowed_errors(documents, target), strict=True):
            assert errors < 0 or lower_bound(number - errors, number) >= target
            assert lower_bound(number - errors - 1, number) < target


def test_how_many_documents_it_would_take() -> None:
    assert documents_needed(PolicyCount(documents=40, accepted=20, correct=20), 0.95) == 118  # 59 accepted of them
    assert documents_needed(PolicyCount(documents=40, accepted=20, correct=19), 0.95) is None
    assert documents_needed(PolicyCount(documents=40, accepted=0, correct=0), 0.95) is None
    needed = documents_needed(PolicyCount(documents=200, accepted=100, correct=97), 0.95)
    assert needed is not None
    accepted = needed // 2
    assert lower_bound(accepted - int(np.ceil(0.03 * accepted)), accepted) >= 0.95


def test_documents_of_equal_confidence_go_together() -> None:
    confidence = np.array([0.9] * 80 + [0.6] * 20)
    right = np.array([True] * 80 + [False] * 20)
    assert best_threshold(confidence, right, 0.9, 100) == pytest.approx(0.75)
    assert best_threshold(confidence, np.ones(100, dtype=bool), 0.9, 100) == pytest.approx(0.3)


def test_the_report_says_what_is_accepted_by_coverage_precision_and_label() -> None:
    valid, test = table(1000, 0.9, 1), table(1000, 0.9, 2)
    found = model_policy(0.95, LABELS, "tiny", valid, test)
    assert found.policy.holds
    assert sum(row.predicted for row in found.by_label) == found.policy.test.documents == 1000
    assert sum(row.accepted for row in found.by_label) == found.policy.test.accepted
    assert sum(row.correct for row in found.by_label) == found.policy.test.correct
    assert found.curve[-1].coverage == 1.0
    assert [point.coverage for point in found.curve] == sorted(point.coverage for point in found.curve)
    assert found.sentence.startswith("Accepted without a person: of 1,000 test documents ")
    files = report(
        predictions_table(1000, seed=3),
        documents=test.append_column("tiny_tokens", pa.array([9] * 1000, pa.int32())),
        target=0.95,
        validation=valid,
    )
    assert files.report.policies == {"tiny": found.policy}
    html = files.html.decode()
    assert "<h2>Decision policy" in html
    assert found.sentence in html
    assert 'class="dot m0 chosen"' in html
    assert "<h2>Decision policy" not in report(predictions_table(50)).html.decode()


def test_the_calibration_after_the_temperature_is_that_of_the_confidences() -> None:
    valid, test = table(2000, 0.9, 1), table(2000, 0.9, 2)
    found = model_policy(0.95, LABELS, "tiny", valid, test)
    probabilities, truth = answers(2000, 0.9, 2)
    right = probabilities.argmax(axis=1) == truth
    assert found.calibration is not None
    expected, _ = calibration(
        confidences(probabilities.astype(np.float32).astype(np.float64), found.policy.temperature), right
    )
    assert found.calibration.ece == pytest.approx(expected, abs=1e-9)
    assert found.calibration.ece < calibration(probabilities.max(axis=1), right)[0] / 2


def test_a_policy_that_cannot_be_shown_to_hold_says_how_many_documents_it_would_take() -> None:
    few = model_policy(0.95, LABELS, "tiny", table(60, 0.97, 1), table(40, 0.97, 2))
    assert not few.policy.holds
    assert few.policy.documents_needed is not None
    assert few.sentence.startswith("Nothing is accepted: of 40 test documents ")
    assert f"it would take about {few.policy.documents_needed:,} test documents" in few.sentence
