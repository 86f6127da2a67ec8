"""Mistakes, lengths and curves."""

import numpy as np
import pyarrow as pa
import pytest
from statsmodels.stats.proportion import proportion_confint

from docml_assets.report.evidence import EXCERPT, Evidence, confident_mistakes, error_by_length
from tests.docml_assets.report.samples import documents_table, predictions_table, read


def test_the_most_confident_mistakes_come_first() -> None:
    predictions = read(predictions_table(200))
    rows = confident_mistakes(predictions, "tiny")
    wrong = predictions.predicted["tiny"] != predictions.truth
    probability = predictions.probability["tiny"]
    assert len(rows) == 10
    assert wrong[rows].all()
    assert probability[rows].tolist() == sorted(probability[wrong], reverse=True)[:10]


def test_errors_by_length() -> None:
    table = predictions_table(300)
    predictions, documents = read(table), documents_table(table, ["tiny"])
    bins = error_by_length(predictions, "tiny", documents)
    lengths = np.array(documents["tiny_tokens"].to_pylist())
    wrong = predictions.predicted["tiny"] != predictions.truth
    assert len(bins) == 10
    assert sum(entry.count for entry in bins) == 300
    for entry, following in zip(bins, (*bins[1:], None), strict=True):
        inside = (lengths >= entry.shortest) & (lengths <= entry.longest)
        assert (inside.sum(), wrong[inside].mean()) == (entry.count, pytest.approx(entry.error))
        wilson = proportion_confint(wrong[inside].sum(), inside.sum(), method="wilson")
        assert (entry.low, entry.high) == pytest.approx(wilson, abs=1e-9)
        assert following is None or entry.longest < following.shortest


def test_documents_of_one_length_and_of_none() -> None:
    table = predictions_table(20)
    same = pa.table({"artifact_guid": table["artifact_guid"], "tiny_tokens": [7] * 20})
    assert [(entry.shortest, entry.longest, entry.count) for entry in error_by_length(read(table), "tiny", same)] == [
        (7, 7, 20)
    ]
    assert error_by_length(read(table), "tiny", table) == ()


def test_excerpts_are_cut_and_fetched_once() -> None:
    predictions = read(predictions_table(50, ("a", "b")))
    asked: list[str] = []

    def excerpt(guid: str) -> str:
        asked.append(guid)
        return "one  two\n" * 200

    evidence = Evidence.gather(predictions, pa.table({}), {}, excerpt)
    assert len(asked) == len(set(asked))
    text = evidence.mistakes["a"][0].excerpt
    assert text.startswith("one two one two")
    assert text.endswith(" …")
    assert len(text) <= EXCERPT + 2


def test_curves_leave_out_what_is_no_number() -> None:
    rows = [
        {"epoch": 1, "train_loss": 0.5, "valid_f1": float("nan"), "note": "x", "step_losses": [1.0]},
        {"train_loss": 3.0},
        {"epoch": 2, "train_loss": 0.25, "valid_f1": 0.5},
    ]
    predictions = read(predictions_table(5))
    evidence = Evidence.gather(predictions, pa.table({}), {"tiny": rows, "gone": rows}, lambda _: "")
    assert evidence.curves == {"tiny": {"train_loss": [(1.0, 0.5), (2.0, 0.25)], "valid_f1": [(2.0, 0.5)]}}
