"""Runs against each other, on the documents they share."""

import pyarrow as pa
import pytest

from docml_assets.errors import ReportError
from docml_assets.report.earlier_runs import COMPARED_RUNS, PreviousRun, against_the_past, compare_runs
from docml_assets.report.schema import NO_DIFFERENCE
from docml_assets.report.statistics import confusion_matrix, label_scores
from tests.docml_assets.report.samples import LABELS, predictions_table, read


def run(number: int, table: pa.Table, labels: tuple[str, ...] = LABELS, experiment: str = "EXP-1") -> PreviousRun:
    return PreviousRun(experiment, number, table, labels)


def test_the_first_run() -> None:
    past = against_the_past(read(predictions_table(50)), [])
    assert (past.runs_on_this_test_set, past.comparisons) == (0, ())


def test_only_runs_that_share_documents_count_and_the_latest_are_compared() -> None:
    current = predictions_table(100)
    earlier = [run(number, current.slice(number * 10)) for number in range(1, 6)]
    stranger = run(6, predictions_table(100, prefix="other"))
    past = against_the_past(read(current), [*earlier, stranger])
    assert past.runs_on_this_test_set == 5
    assert [comparison.run for comparison in past.comparisons] == [5, 4, 3]
    assert len(past.comparisons) == COMPARED_RUNS
    assert past.comparisons[0].common_documents == 50


def test_a_model_meets_its_namesake_or_the_best_of_the_earlier_run() -> None:
    current = predictions_table(300, ("kept", "new"))
    before = predictions_table(300, ("kept", "best"), accuracy=(0.3, 0.9))
    (comparison,) = against_the_past(read(current), [run(1, before)]).comparisons
    assert [(pair.a, pair.b) for pair in comparison.pairs] == [("kept", "run 1 kept"), ("new", "run 1 best")]
    assert [pair.verdict for pair in comparison.pairs] == ["kept", "run 1 best"]


def test_numbers_are_those_of_the_common_documents() -> None:
    current, before = predictions_table(200), predictions_table(200, accuracy=(0.5,)).slice(50)
    (comparison,) = against_the_past(read(current), [run(1, before)]).comparisons
    common = read(current.slice(50))
    mine = label_scores(confusion_matrix(common.truth, common.predicted["tiny"], 4)).f1_macro
    theirs = label_scores(confusion_matrix(common.truth, read(before).predicted["tiny"], 4)).f1_macro
    assert comparison.pairs[0].f1_difference == pytest.approx(mine - theirs)


def test_equal_runs_show_no_difference() -> None:
    table = predictions_table(100)
    (comparison,) = against_the_past(read(table), [run(1, table)]).comparisons
    assert comparison.pairs[0].verdict == NO_DIFFERENCE
    assert comparison.pairs[0].f1_difference_ci95 == (0.0, 0.0)


def test_other_labels_and_relabelled_documents() -> None:
    """The earlier run knew a label less and another one besides; the current run's labels are the truth."""
    current = predictions_table(100)
    before = predictions_table(100, labels=("letter", "memo", "note"), seed=3)
    compared = compare_runs(run(2, current), run(1, before, ("letter", "memo", "note")))
    truth = current["label"].to_pylist()
    assert compared.relabelled == sum(a != b for a, b in zip(truth, before["label"].to_pylist(), strict=True))
    right = sum(a == b for a, b in zip(truth, before["tiny_prediction"].to_pylist(), strict=True))
    pair = compared.comparison.pairs[0]
    assert pair.both_correct + pair.only_b == right


def test_two_experiments() -> None:
    one, two = predictions_table(120, ("a", "b")), predictions_table(150, ("a",), seed=2).slice(20)
    compared = compare_runs(run(1, one), run(3, two, experiment="EXP-2"))
    assert (compared.common_documents, compared.only_a_documents, compared.only_b_documents) == (100, 20, 30)
    assert [(pair.a, pair.b) for pair in compared.comparison.pairs] == [
        ("EXP-1 run 1 a", "EXP-2 run 3 a"),
        ("EXP-1 run 1 b", "EXP-2 run 3 a"),
    ]


def test_runs_that_share_nothing() -> None:
    with pytest.raises(ReportError, match=r"EXP-1 run 1 \(10 test documents\) and EXP-1 run 2 \(20\) share none"):
        compare_runs(run(1, predictions_table(10)), run(2, predictions_table(20, prefix="other")))
