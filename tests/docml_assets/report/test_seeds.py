"""Means over seeds: intervals and verdicts that count seeds and documents."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from docml_assets.errors import ReportError
from docml_assets.report.build import assess
from docml_assets.report.schema import NO_DIFFERENCE, Report
from docml_assets.report.seeds import SeedAnswers, SeedSample, difference, mean_interval
from tests.docml_assets.report.samples import predictions_table, read, report

SEEDS = (13, 14, 15)


def sample(f1: Sequence[float], resampled: np.ndarray | None = None) -> SeedSample:
    still = np.tile(np.array(f1)[:, np.newaxis], (1, 10))
    return SeedSample(np.array(f1), np.array(f1), still if resampled is None else resampled)


def answers(accuracy: Sequence[tuple[float, float]]) -> SeedAnswers:
    """Of the models a and b, by seed. Truth is the same for every seed: it is drawn first."""
    tables = {
        seed: predictions_table(400, ("a", "b"), accuracy=shares, seed=0)
        for seed, shares in zip(SEEDS, accuracy, strict=True)
    }
    valid = {"a": {13: 0.5, 14: 0.9, 15: 0.9}, "b": {13: 0.7, 14: 0.6, 15: 0.5}}
    return SeedAnswers(tables, valid, {"a": 14, "b": 13})


def assessed(found: SeedAnswers) -> Report:
    table = found.predictions[found.chosen["a"]]
    return assess("EXP-1", 1, read(table), {}, [], {}, seeds=found)


def test_every_seed_is_scored() -> None:
    found = answers([(0.7, 0.6), (0.8, 0.7), (0.9, 0.5)])
    seeds = assessed(found).seeds["a"]
    assert [score.seed for score in seeds.scores] == list(SEEDS)
    for score in seeds.scores:
        truth, said = (found.predictions[score.seed][name].to_pylist() for name in ("label", "a_prediction"))
        assert score.f1_macro == pytest.approx(f1_score(truth, said, average="macro"), abs=1e-12)
        assert score.accuracy == pytest.approx(accuracy_score(truth, said), abs=1e-12)
    scores = [score.f1_macro for score in seeds.scores]
    assert seeds.f1_macro_mean == pytest.approx(np.mean(scores))
    assert seeds.f1_macro_sd == pytest.approx(np.std(scores, ddof=1))
    assert (seeds.chosen, seeds.scores[1].valid_f1) == (14, 0.9)
    low, high = seeds.f1_macro_mean_ci95
    assert low < seeds.f1_macro_mean < high


def test_without_documents_noise_it_is_students_interval() -> None:
    scores = [0.7, 0.75, 0.83]
    expected = stats.t.interval(0.95, 2, np.mean(scores), stats.sem(scores))
    assert mean_interval(sample(scores)) == pytest.approx(expected)


def test_without_documents_noise_it_lies_between_welch_and_cochran_and_cox() -> None:
    a, b = [0.7, 0.75, 0.83], [0.6, 0.62, 0.61, 0.66]
    found, parts = difference(sample(a), sample(b)), [(stats.sem(each) ** 2, len(each) - 1) for each in (a, b)]
    variance, welch = sum(part for part, _ in parts), stats.ttest_ind(a, b, equal_var=False)

    def quantile(level: float) -> float:
        cochran = sum(part * stats.t.isf(level / 2, freedom) for part, freedom in parts) / variance
        return float((cochran + stats.t.isf(level / 2, welch.df)) / 2)

    gap = np.mean(a) - np.mean(b)
    reach = quantile(0.05) * variance**0.5
    assert found.f1_difference_ci95 == pytest.approx((gap - reach, gap + reach))
    assert quantile(found.p) == pytest.approx(welch.statistic)
    assert found.p > welch.pvalue


def test_without_seeds_noise_it_is_the_bootstraps_normal_interval() -> None:
    random = np.random.default_rng(0)
    shared = random.normal(0.8, 0.02, 2000)
    low, high = mean_interval(sample([0.8, 0.8, 0.8], np.tile(shared, (3, 1))))
    assert (low, high) == pytest.approx((0.8 - 1.96 * shared.std(ddof=1), 0.8 + 1.96 * shared.std(ddof=1)), abs=1e-4)


def test_what_strikes_both_models_alike_does_not_count_in_their_difference() -> None:
    random = np.random.default_rng(0)
    shared = np.tile(random.normal(0, 0.05, 2000), (3, 1))
    a, b = sample([0.80, 0.81, 0.82], 0.8 + shared), sample([0.70, 0.71, 0.72], 0.7 + shared)
    still = difference(sample([0.80, 0.81, 0.82]), sample([0.70, 0.71, 0.72]))
    assert difference(a, b).p == pytest.approx(still.p)


def test_the_verdict_counts_the_seeds() -> None:
    steady = assessed(answers([(0.9, 0.6), (0.9, 0.6), (0.89, 0.61)]))
    assert [pair.verdict for pair in steady.comparison] == ["a"]
    # The chosen models differ clearly; the seeds of a lie so far apart that another one may well be worse than b.
    loose = assessed(answers([(0.35, 0.6), (0.9, 0.6), (0.5, 0.61)]))
    (pair,) = loose.comparison
    assert pair.mcnemar_p_holm < 0.001
    assert pair.verdict == NO_DIFFERENCE
    assert "on average over seeds" in loose.summary[1]


def test_the_baseline_is_a_model_with_one_seed() -> None:
    found = answers([(0.9, 0.6), (0.9, 0.6), (0.89, 0.61)])
    table = found.predictions[14]
    columns = {"b_prediction": "prediction", "b_probability": "probability"}
    baseline = table.select(["artifact_guid", "label", *columns]).rename_columns(
        ["artifact_guid", "label", *columns.values()]
    )
    files = report(table, seeds=found, baseline=baseline)
    assert files.report.seeds.keys() == {"a", "b"}
    assert "; over 3 seeds its mean is " in files.summary[0]
    assert "a beats the baseline" in files.summary[0]
    assert "Each model was trained once a seed" in files.html.decode()
    assert "not about models trained with other seeds" not in files.summary[2]


def test_seeds_that_answered_other_documents_are_refused() -> None:
    found = answers([(0.9, 0.6), (0.9, 0.6), (0.89, 0.61)])
    other = SeedAnswers({**found.predictions, 15: found.predictions[15].slice(1)}, found.valid_f1, found.chosen)
    with pytest.raises(ReportError, match="predictions with seed 15 are of other documents than the run's test split"):
        assessed(other)
