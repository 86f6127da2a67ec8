"""Every number of report.json, recomputed from predictions.parquet by scikit-learn and statsmodels."""

import io
import json
import time
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binom, norm
from sklearn import metrics
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from docml_assets.errors import ReportError
from docml_assets.report.build import ReportFiles
from docml_assets.report.comparison import PreviousRun
from docml_assets.report.evidence import Lineage
from docml_assets.report.schema import NO_DIFFERENCE, Report
from docml_assets.report.statistics import RESAMPLES, SEED
from tests.docml_assets.report.samples import LABELS, SHA, predictions_table, report

MODELS = ("tiny", "large", "other-1.5")
WITH_ABSENT = (*LABELS, "absent")


def reread(files: ReportFiles) -> tuple[dict[str, Any], Any]:
    """report.json and predictions.parquet as any reader has them."""
    return json.loads(files.report_json), pq.read_table(io.BytesIO(files.predictions_parquet)).to_pandas()


@pytest.fixture(scope="module")
def files() -> ReportFiles:
    return report(
        predictions_table(240, MODELS, truths=LABELS, labels=WITH_ABSENT, accuracy=(0.85, 0.7, 0.5)), WITH_ABSENT
    )


def test_scores(files: ReportFiles) -> None:
    found, table = reread(files)
    assert (found["experiment"], found["run"], found["num_test"]) == ("EXP-1-test", 2, 240)
    assert found["labels"] == list(WITH_ABSENT)
    assert list(found["models"]) == list(MODELS)
    for name, model in found["models"].items():
        truth, said = table["label"], table[f"{name}_prediction"]
        assert model["accuracy"] == pytest.approx(metrics.accuracy_score(truth, said), abs=1e-12)
        assert model["f1_macro"] == pytest.approx(
            metrics.f1_score(truth, said, labels=sorted(set(truth)), average="macro", zero_division=0), abs=1e-12
        )
        assert model["f1_weighted"] == pytest.approx(
            metrics.f1_score(truth, said, labels=WITH_ABSENT, average="weighted", zero_division=0), abs=1e-12
        )
        confusion = metrics.confusion_matrix(truth, said, labels=WITH_ABSENT)
        assert model["confusion_matrix"] == confusion.tolist()
        assert model["docs_per_second"] == 120.5
        assert model["latency_ms"] == 7.25
        assert model["torchscript_sha256"] == SHA


def test_scores_by_label(files: ReportFiles) -> None:
    found, table = reread(files)
    for name, model in found["models"].items():
        truth, said = table["label"], table[f"{name}_prediction"]
        expected = metrics.precision_recall_fscore_support(truth, said, labels=WITH_ABSENT, zero_division=0)
        by_label = {row["label"]: row for row in model["per_label"]}
        assert [row["f1"] for row in model["per_label"]] == sorted(
            (row["f1"] for row in by_label.values()), reverse=True
        )
        assert set(by_label) == set(WITH_ABSENT)
        for label, precision, recall, f1, support in zip(WITH_ABSENT, *expected, strict=True):
            row = by_label[label]
            assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision, recall, f1), abs=1e-12)
            assert row["support"] == support
            assert row["correct"] == ((truth == label) & (said == label)).sum()
            assert row["accuracy"] == pytest.approx(row["correct"] / support if support else 0, abs=1e-12)


def test_calibration(files: ReportFiles) -> None:
    found, table = reread(files)
    for name, model in found["models"].items():
        probability = table[f"{name}_probability"].astype(float)
        right = table["label"] == table[f"{name}_prediction"]
        error = 0.0
        for index, entry in enumerate(model["calibration"]["bins"]):
            low, high = index / 15, (index + 1) / 15
            inside = (probability > low) & (probability <= high)
            assert (entry["low"], entry["high"]) == pytest.approx((low, high), abs=1e-12)
            assert entry["count"] == inside.sum()
            if not inside.any():
                assert entry["confidence"] is entry["accuracy"] is None
                continue
            assert entry["confidence"] == pytest.approx(probability[inside].mean(), abs=1e-9)
            assert entry["accuracy"] == pytest.approx(right[inside].mean(), abs=1e-9)
            error += inside.mean() * abs(probability[inside].mean() - right[inside].mean())
        assert model["calibration"]["ece"] == pytest.approx(error, abs=1e-9)


def test_comparison(files: ReportFiles) -> None:
    found, table = reread(files)
    pairs = found["comparison"]
    assert [(pair["a"], pair["b"]) for pair in pairs] == list(combinations(MODELS, 2))
    p_values = []
    for pair in pairs:
        a, b = (table["label"] == table[f"{pair[side]}_prediction"] for side in "ab")
        counts = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        assert [[pair["both_correct"], pair["only_a"]], [pair["only_b"], pair["both_wrong"]]] == counts
        exact = mcnemar(counts, exact=True).pvalue
        smaller, discordant = min(pair["only_a"], pair["only_b"]), pair["only_a"] + pair["only_b"]
        point = binom.pmf(smaller, discordant, 0.5)
        expected = 1.0 if pair["only_a"] == pair["only_b"] else exact - point
        assert pair["mcnemar_p"] == pytest.approx(expected, abs=1e-9)
        p_values.append(expected)
        difference = found["models"][pair["a"]]["f1_macro"] - found["models"][pair["b"]]["f1_macro"]
        assert pair["f1_difference"] == pytest.approx(difference, abs=1e-12)
    corrected = multipletests(p_values, method="holm")[1]
    for pair, p in zip(pairs, corrected, strict=True):
        assert pair["mcnemar_p_holm"] == pytest.approx(p, abs=1e-9)
        low, high = pair["f1_difference_ci95"]
        expected = pair["a"] if p < 0.05 and low > 0 else pair["b"] if p < 0.05 and high < 0 else NO_DIFFERENCE
        assert pair["verdict"] == expected
    assert any(pair["verdict"] != NO_DIFFERENCE for pair in pairs)


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals(grouped: bool) -> None:
    """By the slow and plain way: 2,000 times, draw documents or groups, and score (documents: by scikit-learn)."""
    table = predictions_table(60, MODELS[:2], seed=5)
    groups = {guid: f"g{index // 3}" for index, guid in enumerate(table["artifact_guid"].to_pylist())}
    groups["doc-000059"] = None  # type: ignore[assignment]  # a document without a group is a group of its own
    found, frame = reread(report(table, group_column="source", groups=groups) if grouped else report(table))
    if grouped:
        assert frame["group"].nunique() == 20
        units = [
            rows.to_numpy() for _, rows in frame.index.to_series().groupby(frame["group"].fillna("own"), sort=False)
        ]
    else:
        assert "group" not in frame
        units = [np.array([index]) for index in range(60)]
    random = np.random.default_rng(SEED)
    scores: dict[str, list[float]] = {name: [] for name in MODELS[:2]}
    codes = {label: index for index, label in enumerate(LABELS)}
    truth = frame["label"].map(codes).to_numpy()
    answers = {name: frame[f"{name}_prediction"].map(codes).to_numpy() for name in scores}
    for _ in range(RESAMPLES):
        rows = np.concatenate([units[unit] for unit in random.integers(0, len(units), len(units))])
        for name, values in scores.items():
            values.append((_f1 if grouped else _sklearn_f1)(truth[rows], answers[name][rows]))
    for name, values in scores.items():
        estimate = found["models"][name]["f1_macro"]
        assert found["models"][name]["f1_macro_ci95"] == pytest.approx(_corrected(estimate, np.array(values)), abs=1e-9)
    difference = np.array(scores["tiny"]) - np.array(scores["large"])
    pair = found["comparison"][0]
    assert pair["f1_difference_ci95"] == pytest.approx(_corrected(pair["f1_difference"], difference), abs=1e-9)


def test_label_winners_and_disagreements(files: ReportFiles) -> None:
    found, table = reread(files)
    said = table[[f"{name}_prediction" for name in MODELS]]
    assert found["disagreements"] == (said.nunique(axis=1) > 1).sum()
    assert [winner["label"] for winner in found["label_winners"]] == list(LABELS)
    for winner in found["label_winners"]:
        f1 = sorted(
            (row["f1"], name)
            for name, model in found["models"].items()
            for row in model["per_label"]
            if row["label"] == winner["label"]
        )
        assert winner["models"] == [f1[-1][1]]
        assert winner["f1"] == f1[-1][0]
        assert winner["lead"] == pytest.approx(f1[-1][0] - f1[-2][0], abs=1e-12)


def test_report_json_is_strict_json_and_round_trips(files: ReportFiles) -> None:
    json.loads(files.report_json, parse_constant=pytest.fail)  # NaN and infinities are no JSON
    assert Report.from_bytes(files.report_json, "report.json") == files.report


def test_one_class_only() -> None:
    """All documents have one label, and the models know no other: numbers, no division by zero."""
    files = report(predictions_table(20, labels=("memo",)), ("memo",))
    found, _ = reread(files)
    model = found["models"]["tiny"]
    assert (model["f1_macro"], model["accuracy"], model["f1_macro_ci95"]) == (1, 1, [1, 1])
    assert any("one and the same label" in warning for warning in files.warnings)
    assert any("rule of three" in warning for warning in files.warnings)
    assert b"no score here tells a good model from a constant one" in files.html


def test_a_label_absent_from_test(files: ReportFiles) -> None:
    found, _ = reread(files)
    row = next(row for row in found["models"]["tiny"]["per_label"] if row["label"] == "absent")
    assert (row["support"], row["f1"], row["accuracy"]) == (0, 0, 0)
    assert any(warning.startswith("No test document has the label absent") for warning in files.warnings)
    assert b"no test document has this label" in files.html


def test_every_prediction_wrong() -> None:
    table = pa.table(
        {
            "artifact_guid": ["a", "b"],
            "label": ["memo", "letter"],
            "tiny_prediction": ["letter", "memo"],
            "tiny_probability": [0.0, 1.0],
        }
    )
    found, _ = reread(report(table))
    assert (found["models"]["tiny"]["f1_macro"], found["models"]["tiny"]["f1_macro_ci95"]) == (0, [0, 0])


def test_an_empty_test_split() -> None:
    with pytest.raises(ReportError, match="the test split is empty"):
        report(predictions_table(0))


def test_data_version_is_of_predictions_and_scores() -> None:
    table = predictions_table(50)
    first = report(table)
    slower = report(table, timings={}, lineage=Lineage(), experiment="EXP-2", run=9)
    shuffled = report(table.take(np.random.default_rng(0).permutation(50)))
    other = report(predictions_table(50, seed=1))
    assert first.data_version == slower.data_version == shuffled.data_version != other.data_version
    assert shuffled.predictions_parquet == first.predictions_parquet


def test_missing_timings_are_null() -> None:
    model = report(predictions_table(10), timings={}).report.models["tiny"]
    assert (model.docs_per_second, model.latency_ms, model.torchscript_sha256) == (None, None, None)


def test_earlier_runs_enter_the_report() -> None:
    earlier = PreviousRun("EXP-1-test", 1, predictions_table(200, accuracy=(0.4,), seed=0), LABELS)
    files = report(predictions_table(200, seed=0), previous=[earlier])
    assert files.report.past.runs_on_this_test_set == 1
    assert files.report.past.comparisons[0].pairs[0].verdict == "tiny"
    assert "tiny is better than run 1 tiny" in files.summary[2]
    assert "not about models trained with other seeds" in files.summary[2]


def _sklearn_f1(truth: Any, said: Any) -> float:
    return float(metrics.f1_score(truth, said, labels=np.unique(truth), average="macro", zero_division=0))


def _f1(truth: Any, said: Any) -> float:
    """Macro-F1 over the labels in `truth`, by its definition."""
    scores = [
        2 * ((truth == k) & (said == k)).sum() / ((truth == k).sum() + (said == k).sum()) for k in set(truth.tolist())
    ]
    return float(np.mean(scores))


def _corrected(estimate: float, values: np.ndarray[Any, Any]) -> list[float]:
    """Efron's bias-corrected percentile interval."""
    z0 = norm.ppf((np.mean(values < estimate) + np.mean(values <= estimate)) / 2)
    return [float(np.quantile(values, norm.cdf(2 * z0 + z))) for z in norm.ppf([0.025, 0.975])]


def test_many_labels_make_neither_a_large_file_nor_large_pictures() -> None:
    labels = tuple(f"label {number:03d}" for number in range(300))
    made = report(predictions_table(900, ("a", "b"), labels), labels)
    assert Report.from_bytes(made.report_json, "report.json") == made.report
    assert len(made.report_json) < 3 * 2 * 300**2  # about two characters a count, two models
    few = report(predictions_table(900, ("a", "b"), labels[:60]), labels[:60])
    for name in ("per_label.png", "confusion_a.png"):
        assert len(made.plots[name]) < 2 * len(few.plots[name])


@pytest.mark.slow
def test_two_thousand_labels_are_reported_in_a_minute() -> None:
    labels = tuple(f"label {number:04d}" for number in range(2_000))
    table = predictions_table(8_000, ("a", "b"), labels)
    started = time.process_time()
    assert len(report(table, labels).report.models) == 2
    assert time.process_time() - started < 60


def baseline_table(table: pa.Table, accuracy: float) -> pa.Table:
    """baseline.parquet of the documents of `table`, and of others that are not in its test split."""
    other = predictions_table(table.num_rows + 50, ("baseline",), accuracy=(accuracy,), seed=7)
    return other.set_column(1, "label", other["label"]).rename_columns(
        {"baseline_prediction": "prediction", "baseline_probability": "probability"}
    )


def test_the_baseline_is_a_row_of_its_own() -> None:
    table = predictions_table(300, ("a", "b"))
    made = report(table, baseline=baseline_table(table, 0.25)).report
    assert list(made.models) == ["a", "b", "baseline"]
    assert list(made.own_models) == ["a", "b"]
    assert {(pair.a, pair.b) for pair in made.comparison} == {("a", "b"), ("a", "baseline"), ("b", "baseline")}
    assert all(set(winner.models) <= {"a", "b"} for winner in made.label_winners)
    assert "; a beats the baseline (TF-IDF with logistic regression, " in made.summary[0]
    assert "baseline" not in made.summary[1]
    assert made.majority_share == max(Counter(table["label"].to_pylist()).values()) / 300
    alone = report(table).report
    assert (alone.disagreements, alone.label_winners) == (made.disagreements, made.label_winners)


def test_a_baseline_on_pooled_values_is_called_so() -> None:
    table = predictions_table(300, ("a",), accuracy=(0.9,))
    made = report(table, baseline=baseline_table(table, 0.25), prepared={"inputs": "pooled values"})
    assert "; a beats the baseline (logistic regression on pooled values, " in made.summary[0]
    assert "The baseline is logistic regression on pooled values, fitted on" in made.html.decode()


def test_what_preparation_has_found_is_shown() -> None:
    table = predictions_table(300, ("a",), accuracy=(0.9,))
    said = {"now": 0.7, "forecast": 0.75, "interval80": [0.7, 0.8]}
    curve = {
        "points": [[400, 0.7], [200, 0.65], [200, 0.64], [100, 0.6]],
        "documents": 800,
        "f1_macro": said,
        "labels": {"letter": said, "memo": said | {"forecast": 0.9}},
    }
    nearest = {"test": {"documents": 300, "shares": {"0.9": 0.25, "0.95": 0.125}}}
    made = report(
        table, baseline=baseline_table(table, 0.25), prepared={"learning_curve": curve, "nearest_train": nearest}
    )
    assert json.loads(made.report_json)["learning_curve"] == curve
    assert json.loads(made.report_json)["nearest_train"] == nearest
    assert 'test, 300 documents</td><td class="n">25.0 %</td><td class="n">12.5 %</td>' in made.html.decode()
    page = made.html.decode()
    assert "with twice as many it would be expected at 0.750 (80 % interval 0.700 to 0.800)" in page
    assert page.index('<bdi>memo</bdi></td><td class="n">0.700') < page.index(
        '<bdi>letter</bdi></td><td class="n">0.700'
    )
    none = report(table, baseline=baseline_table(table, 0.25), prepared={"learning_curve": {"none": "too few"}})
    assert none.report.learning_curve is None
    assert none.data_version == made.data_version


def test_predictions_keep_the_baselines_columns() -> None:
    table = predictions_table(60)
    made = report(table, baseline=baseline_table(table, 0.9))
    columns = pq.read_table(io.BytesIO(made.predictions_parquet)).column_names
    assert {"baseline_prediction", "baseline_probability"} < set(columns)
    without = report(table, baseline=baseline_table(table, 0.9).slice(5))
    assert "baseline" not in without.report.models  # it lacks documents of this test split
