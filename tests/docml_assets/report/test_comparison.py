"""Verdicts, and what leads to them."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import f1_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from docml_assets.errors import ReportError
from docml_assets.report.comparison import (
    COMPARED_RUNS,
    FourCounts,
    PreviousRun,
    against_the_past,
    compare_runs,
    disagreements,
    holm,
    mcnemar_mid_p,
    score_history,
    verdict,
)
from docml_assets.report.schema import NO_DIFFERENCE, PastScore
from docml_assets.report.statistics import confusion_matrix, label_scores
from tests.docml_assets.report.samples import LABELS, predictions_table, read


@pytest.mark.parametrize(("only_a", "only_b"), [(3, 9), (9, 3), (0, 6), (40, 61)])
def test_mid_p_is_the_exact_p_less_the_observed_point(only_a: int, only_b: int) -> None:
    from scipy.stats import binom

    exact = mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue
    expected = exact - binom.pmf(min(only_a, only_b), only_a + only_b, 0.5)
    assert mcnemar_mid_p(only_a, only_b) == pytest.approx(expected, abs=1e-12)


def test_mid_p_without_difference() -> None:
    assert mcnemar_mid_p(0, 0) == mcnemar_mid_p(5, 5) == 1.0


@pytest.mark.parametrize("p_values", [[0.01], [0.04, 0.01, 0.03], [0.9, 0.8, 0.7], [0.02, 0.02, 0.02, 0.5]])
def test_holm(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


FOUR = FourCounts(both_correct=50, only_a=30, only_b=10, both_wrong=10)


@pytest.mark.parametrize(
    ("bounds", "p", "expected"),
    [
        ((0.01, 0.2), 0.01, "a"),
        ((0.01, 0.2), 0.05, NO_DIFFERENCE),  # the test does not say so
        ((-0.01, 0.2), 0.01, NO_DIFFERENCE),  # the interval does not say so
        ((0.0, 0.2), 0.01, NO_DIFFERENCE),  # 0 is not excluded
        ((-0.2, -0.01), 0.01, NO_DIFFERENCE),  # they say opposite things
    ],
)
def test_verdict_needs_test_and_interval(bounds: tuple[float, float], p: float, expected: str) -> None:
    assert verdict("a", "b", FOUR, bounds, p) == expected


def test_verdict_for_the_second_model() -> None:
    four = FourCounts(both_correct=50, only_a=10, only_b=30, both_wrong=10)
    assert verdict("a", "b", four, (-0.2, -0.01), 0.01) == "b"


def test_disagreements_begin_with_those_that_some_model_has_right() -> None:
    predictions = read(predictions_table(100, ("x", "y")))
    apart = disagreements(predictions)
    said = np.stack(list(predictions.predicted.values()))[:, apart]
    assert (said[0] != said[1]).all()
    right = (said == predictions.truth[apart]).any(axis=0)
    assert right.tolist() == sorted(right.tolist(), reverse=True)
    assert 0 < right.sum() < len(right)


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


def test_the_history_scores_earlier_runs_on_these_documents_by_these_labels() -> None:
    table = predictions_table(120, ("tiny",), accuracy=(0.8,), seed=3)
    older = predictions_table(160, ("tiny", "large"), accuracy=(0.6, 0.7), seed=4)
    earlier = run(1, older)
    elsewhere = run(2, predictions_table(50, ("tiny",), prefix="other"))
    scores = {"tiny": PastScore(f1_macro=0.5, f1_macro_ci95=(0.4, 0.6))}
    first, this = score_history(3, read(table), scores, ("[hyperparameters] epochs",), [earlier, elsewhere])
    assert (this.run, this.models, this.changed) == (3, scores, ("[hyperparameters] epochs",))
    assert (first.run, first.common_documents, list(first.models)) == (1, 120, ["tiny", "large"])
    truth = dict(zip(table["artifact_guid"].to_pylist(), table["label"].to_pylist(), strict=True))
    said = dict(zip(older["artifact_guid"].to_pylist(), older["large_prediction"].to_pylist(), strict=True))
    expected = f1_score([truth[guid] for guid in truth], [said[guid] for guid in truth], average="macro")
    assert first.models["large"].f1_macro == pytest.approx(expected, abs=1e-12)
    low, high = first.models["large"].f1_macro_ci95
    assert low < expected < high


def test_changed_labels_are_counted_and_their_effect_on_the_score_is_told() -> None:
    table = predictions_table(100, ("tiny",), accuracy=(0.8,), seed=3)
    labels = table["label"].to_pylist()
    old = [LABELS[(LABELS.index(label) + 1) % 4] if row < 7 else label for row, label in enumerate(labels)]
    before = table.set_column(1, "label", pa.array(old))
    (past,) = against_the_past(read(table), [run(1, before)]).comparisons
    assert past.relabelled == 7
    said = table["tiny_prediction"].to_pylist()
    effect = past.old_labels["run 1 tiny"]
    assert effect.before == pytest.approx(f1_score(old, said, average="macro"), abs=1e-12)
    assert effect.after == pytest.approx(f1_score(labels, said, average="macro"), abs=1e-12)
    (same,) = against_the_past(read(table), [run(1, table)]).comparisons
    assert (same.relabelled, same.old_labels) == (0, {})
