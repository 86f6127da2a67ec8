"""Three sentences, whatever the numbers."""

import re

import pyarrow as pa
import pytest

from docml_assets.report.comparison import PreviousRun
from tests.docml_assets.report.samples import LABELS, assessed, predictions_table


def test_one_model() -> None:
    first, second, third = assessed(predictions_table(200)).summary
    assert first.startswith("On 200 unseen documents of 4 labels, tiny reaches a macro-F1 of 0.")
    assert second.startswith("Its weakest label is ")
    assert third.startswith(
        "No earlier run was scored on these test documents; a verdict is about these trained models"
    )


def test_a_winner_is_named() -> None:
    files = assessed(predictions_table(300, ("good", "bad"), accuracy=(0.9, 0.5)))
    assert files.summary[1] == "Of these 2 models, good is better than bad."


def test_no_winner_is_named() -> None:
    table = predictions_table(300, ("one", "two", "three"), accuracy=(0.8, 0.8, 0.8))
    assert assessed(table).summary[1] == "Between none of the 3 models is a difference shown."
    pair = table.drop_columns(["three_prediction", "three_probability"])
    assert assessed(pair).summary[1].startswith("Between one and two no difference shown: macro-F1 differs by ")


def test_a_model_that_says_one_label_always_is_told_in_the_first_sentence() -> None:
    table = predictions_table(200, ("a", "b"))
    constant = table.set_column(2, "a_prediction", pa.array(["letter"] * 200))
    first = assessed(constant).summary[0]
    assert first.endswith("; a gives every document the label letter.")
    assert "labels no more" not in first
    poor = assessed(predictions_table(200, ("a",), accuracy=(0.05,))).summary[0]
    assert re.search(r"; a labels no more correctly than saying \w+ always would \(\d+\.\d %\)\.$", poor)


def test_no_mistake() -> None:
    assert assessed(predictions_table(50, accuracy=(1.0,))).summary[1] == "tiny made no mistake on these documents."


@pytest.mark.parametrize("count", [1, 6])
def test_the_past_is_counted(count: int) -> None:
    table = predictions_table(200)
    earlier = [PreviousRun("EXP-1-test", number + 1, table, LABELS) for number in range(count)]
    files = assessed(table, earlier, run=9)
    assert files.summary[2].startswith(
        f"{count} earlier run{'s were' if count > 1 else ' was'} scored on these test documents"
    )
    assert any("choosing the best of many" in warning for warning in files.warnings) == (count >= 5)


def test_few_documents_of_a_label() -> None:
    warnings = assessed(predictions_table(20)).warnings
    assert any(warning.startswith("Labels with fewer than 10 test documents") for warning in warnings)


def test_groups_are_mentioned() -> None:
    table = predictions_table(60)
    groups = {guid: str(index // 2) for index, guid in enumerate(table["artifact_guid"].to_pylist())}
    warnings = assessed(table, groups=groups).warnings
    assert any(warning.startswith("Documents come in 30 groups (SPLIT_BY)") for warning in warnings)


def test_a_baseline_that_is_no_better_than_one_label_is_told() -> None:
    table = predictions_table(200, ("tiny", "baseline"), accuracy=(0.9, 0.05), seed=2)
    assert any("no more than saying one label always would" in warning for warning in assessed(table).warnings)
    good = predictions_table(200, ("tiny", "baseline"), accuracy=(0.9, 0.8), seed=2)
    assert not any("one label always" in warning for warning in assessed(good).warnings)
