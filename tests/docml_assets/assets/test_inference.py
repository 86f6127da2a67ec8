"""What the asset checks ask."""

import pytest

from docml_assets.assets.inference import not_worse_than_previous, report_adds_up
from docml_assets.report.comparison import PreviousRun
from docml_assets.report.schema import Report
from tests.docml_assets.report.samples import LABELS, assessed, predictions_table


def test_a_report_adds_up() -> None:
    table = predictions_table(100, ("a", "b"))
    outcome = report_adds_up(assessed(table), table, LABELS)
    assert outcome.passed
    assert outcome.text == "sums and labels of 100 documents agree"


def test_a_report_that_does_not() -> None:
    table = predictions_table(100, ("a", "b"))
    built = assessed(table)
    matrix = [list(row) for row in built.models["a"].confusion_matrix]
    matrix[0][0] += 1
    model = built.models["a"].model_copy(update={"confusion_matrix": tuple(map(tuple, matrix))})
    changed: Report = built.model_copy(update={"models": built.models | {"a": model}, "num_test": 99})
    outcome = report_adds_up(changed, table, LABELS[::-1])
    assert not outcome.passed
    assert outcome.error
    for said in (
        "labels ['invoice'",
        "num_test 99, expected 100",
        "a: the confusion matrix counts 101",
        "the four counts",
    ):
        assert said in outcome.text
    assert "support or correct of 'invoice' differ" in outcome.text


@pytest.mark.parametrize("setting", ["warn", "block"])
def test_worse_than_the_previous_run(setting: str) -> None:
    earlier = PreviousRun("EXP-1-test", 1, predictions_table(300, accuracy=(0.9,)), LABELS)
    worse = assessed(predictions_table(300, accuracy=(0.5,)), [earlier])
    outcome = not_worse_than_previous(worse, setting)  # type: ignore[arg-type]
    assert not outcome.passed
    assert outcome.error == (setting == "block")
    assert outcome.text.startswith("tiny is worse than run 1 tiny: macro-F1 \N{MINUS SIGN}0.")


def test_not_worse_than_the_previous_run() -> None:
    table = predictions_table(300)
    assert not_worse_than_previous(assessed(table), "block").passed
    same = assessed(table, [PreviousRun("EXP-1-test", 1, table, LABELS)])
    outcome = not_worse_than_previous(same, "block")
    assert outcome.passed
    assert outcome.text == "no difference shown from run 1 (300 common test documents)"
