"""What may be deployed, and what answers may go into service."""

import json
from typing import Any

import pytest

from docml_assets.report.comparison import PreviousRun
from docml_assets.steps import endpoints
from docml_assets.steps.endpoints import WrongAnswers, compare_answers, find_better
from tests.docml_assets.report.samples import LABELS, assessed, predictions_table


@pytest.mark.parametrize(("model", "better"), [("a", None), ("b", "run 1 b")])
def test_a_model_is_held_up_by_its_own_comparison_only(model: str, better: str | None) -> None:
    earlier = PreviousRun("EXP-1-test", 1, predictions_table(300, ("a", "b"), accuracy=(0.9, 0.9)), LABELS)
    report = assessed(predictions_table(300, ("a", "b"), accuracy=(0.9, 0.4)), [earlier])
    assert find_better(report, model) == better
    assert find_better(assessed(predictions_table(300, ("a", "b"))), model) is None


def answer(a: float, b: float) -> dict[str, Any]:
    return {"label": "a" if a >= b else "b", "probability": max(a, b), "probabilities": {"a": a, "b": b}}


@pytest.mark.parametrize(
    ("arithmetic", "said", "refusal"),
    [
        ("float32", answer(0.8, 0.2), None),
        ("float32", answer(0.80009, 0.19991), None),
        ("float32", answer(0.803, 0.197), "answers 'a' with 0.803, the report has 0.8; expected at most 0.0001"),
        ("bfloat16", answer(0.803, 0.197), None),
        ("bfloat16", answer(0.83, 0.17), "answers 'a' with 0.83, the report has 0.8; expected at most 0.02"),
        ("bfloat16", answer(0.2, 0.8), "answers 'b', the report has 'a'"),
        ("float32", {}, "answers None, the report has 'a'"),
        ("bfloat16", {"label": "b", "probabilities": None}, "answers 'b', the report has 'a'"),
        ("bfloat16", {"label": "a", "probability": "0.8"}, "answers 'a' with 0.8, the report has 0.8"),
    ],
)
def test_answers_are_the_reports(arithmetic: str, said: dict[str, Any], refusal: str | None) -> None:
    documents = [endpoints.TestDocument("g", {"text": b"x"}, "a", 0.8)]
    if refusal is None:
        assert compare_answers(documents, lambda body: json.dumps([said]).encode(), arithmetic) == 1
    else:
        with pytest.raises(WrongAnswers, match=refusal):
            compare_answers(documents, lambda body: json.dumps([said]).encode(), arithmetic)


def test_of_two_labels_that_are_nearly_equal_bfloat16_may_say_the_other() -> None:
    documents = [endpoints.TestDocument("g", {"text": b"x"}, "a", 0.501)]
    said = json.dumps([answer(0.499, 0.501)]).encode()
    assert compare_answers(documents, lambda body: said, "bfloat16") == 1
    with pytest.raises(WrongAnswers, match="answers 'b', the report has 'a'"):
        compare_answers(documents, lambda body: said)
