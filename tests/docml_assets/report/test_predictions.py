"""A table is checked once, and says what is wrong with it."""

import numpy as np
import pyarrow as pa
import pytest

from docml_assets.errors import ReportError
from docml_assets.report.predictions import model_names, with_groups
from tests.docml_assets.report.samples import LABELS, predictions_table, read


def test_rows_are_sorted_by_guid() -> None:
    table = predictions_table(20)
    shuffled = read(table.take(np.random.default_rng(0).permutation(20)))
    assert shuffled.guids.tolist() == table["artifact_guid"].to_pylist()
    assert [LABELS[label] for label in shuffled.truth] == table["label"].to_pylist()


def test_models_with_any_allowed_name() -> None:
    table = predictions_table(3, ("a", "roberta-large", "v1.5"))
    assert model_names(table) == ("a", "roberta-large", "v1.5")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.5, None])
def test_probabilities_are_probabilities(value: float | None) -> None:
    table = predictions_table(3)
    wrong = table.set_column(3, "tiny_probability", pa.array([0.5, value, 0.5], pa.float32()))
    with pytest.raises(ReportError, match=r"column tiny_probability: 1 values such as .*, expected probabilities"):
        read(wrong)


def test_a_label_that_the_model_does_not_know() -> None:
    with pytest.raises(ReportError, match="column label: found 'report', expected one of the model's labels"):
        read(predictions_table(50), LABELS[:-1])


def test_a_document_twice() -> None:
    table = predictions_table(3)
    with pytest.raises(ReportError, match="1 documents appear twice"):
        read(pa.concat_tables([table, table.slice(0, 1)]))


def test_a_label_twice() -> None:
    with pytest.raises(ReportError, match="found a label twice"):
        read(predictions_table(3), (*LABELS, "memo"))


def test_a_table_of_something_else() -> None:
    with pytest.raises(ReportError, match="found the columns x; expected artifact_guid, label and"):
        read(pa.table({"x": [1]}))


def test_groups() -> None:
    table = predictions_table(4)
    groups = dict(zip(table["artifact_guid"].to_pylist(), ["b", None, "a", "b"], strict=True))
    grouped = read(with_groups(table, groups))
    assert grouped.groups is not None
    assert grouped.groups.tolist() == [0, 1, 2, 0]
    taken = grouped.take(np.array([1, 3])).groups
    assert taken is not None
    assert taken.tolist() == [0, 1]
    assert read(with_groups(table, {})).groups is None
