"""What may be deployed."""

import pytest

from docml_assets.report.comparison import PreviousRun
from docml_assets.steps.endpoints import find_better
from tests.docml_assets.report.samples import LABELS, assessed, predictions_table


@pytest.mark.parametrize(("model", "better"), [("a", None), ("b", "run 1 b")])
def test_a_model_is_held_up_by_its_own_comparison_only(model: str, better: str | None) -> None:
    earlier = PreviousRun("EXP-1-test", 1, predictions_table(300, ("a", "b"), accuracy=(0.9, 0.9)), LABELS)
    report = assessed(predictions_table(300, ("a", "b"), accuracy=(0.9, 0.4)), [earlier])
    assert find_better(report, model) == better
    assert find_better(assessed(predictions_table(300, ("a", "b"))), model) is None
