"""The decision policy as whoever answers applies it."""

import numpy as np

from docml_contract.policy import Policy, PolicyCount, confidences

LOGITS = np.array([[2.0, 0.0, -1.0], [0.1, 0.0, 0.2]])


def policy(**changes: object) -> Policy:
    counts = PolicyCount(documents=10, accepted=4, correct=4)
    content = {
        "target": 0.9,
        "temperature": 2.0,
        "threshold": 0.6,
        "valid": counts,
        "test": counts,
        "lower_bound": 0.95,
    }
    return Policy.model_validate(content | changes)


def softmax(logits: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def test_the_confidence_is_the_top_probability_of_the_logits_divided_by_the_temperature() -> None:
    for temperature in (0.3, 1.0, 4.0):
        expected = softmax(LOGITS / temperature).max(axis=-1)
        assert np.allclose(confidences(softmax(LOGITS), temperature), expected)
    assert confidences(np.array([1.0, 0.0]), 0.05) == 1.0


def test_whole_tables_and_single_answers_are_decided_alike() -> None:
    found = policy()
    probabilities = softmax(LOGITS)
    assert found.accepts(probabilities).tolist() == [True, False]
    assert [bool(found.accepts(row)) for row in probabilities] == [True, False]


def test_without_a_shown_precision_nothing_is_accepted() -> None:
    found = policy(lower_bound=0.89)
    assert not found.holds
    assert not found.accepts(softmax(LOGITS)).any()
    assert Policy.from_bytes(found.to_bytes(), "policy.json") == found
