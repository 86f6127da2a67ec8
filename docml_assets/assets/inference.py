"""inference_report, with its checks and what they ask."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

import dagster as dg
import pyarrow as pa

from docml_assets.assets.checks import Check, Finding, make_checks
from docml_assets.assets.materialization import Results, materialize, run_asset
from docml_assets.assets.metadata import Metadata, column_schema, pictures, plotted, report_link, table
from docml_assets.assets.preparation import encoded_splits
from docml_assets.assets.training import best_torchscript_model
from docml_assets.numbers import number, score, share, signed
from docml_assets.report.plots import HISTORY_PLOT
from docml_assets.report.predictions import read_predictions
from docml_assets.report.schema import NO_DIFFERENCE, Report, read_report
from docml_assets.steps.inference import run_inference
from docml_assets.steps.preparation import read_labels
from docml_assets.steps.work import Outcome, Work
from docml_assets.tables import read_parquet
from docml_contract.names import (
    INFERENCE_REPORT,
    PREDICTION_SUFFIX,
    PREDICTIONS,
    PROBABILITIES_SUFFIX,
    PROBABILITY_SUFFIX,
    REPORT_HTML,
)

COLUMNS = {
    "artifact_guid": "the document",
    "label": "its label",
    "group": "its SPLIT_BY value",
    PREDICTION_SUFFIX: "the label that this model gives it",
    PROBABILITY_SUFFIX: "the model's probability of that label",
    PROBABILITIES_SUFFIX: "the model's probabilities of all labels, in the order of report.json",
}


@run_asset(
    INFERENCE_REPORT,
    deps=[encoded_splits, best_torchscript_model],
    group="evaluation",
    kinds={"torchscript", "html"},
    description="Every model of the run on the test split: scores with intervals, comparison, calibration, errors, and the same "
    "documents under earlier runs. report.html is the page to read.",
)
def inference_report(context: dg.AssetExecutionContext) -> Results:
    """Score the run's models on the test split and write the report."""
    yield from materialize(context, INFERENCE_REPORT, run_inference, _metadata)


def _metadata(work: Work, outcome: Outcome) -> Metadata:
    report = read_report(work.store, work.place)
    best = report.best_model
    scores: dict[str, float] = {}
    for name, model in report.models.items():
        scores |= {f"macro-F1 ({name})": model.f1_macro, f"accuracy ({name})": model.accuracy}
    stored, made = (work.store, outcome.folder, outcome.manifest), outcome.how == "made"
    paths = [entry.path for entry in outcome.manifest.files if entry.path.startswith("plots/")]
    plots = {path: PurePosixPath(path).stem.replace("_", " ") for path in paths}
    history = {path: "macro-F1 by run" for path in plots if path == f"plots/{HISTORY_PLOT}"}
    predictions = read_parquet(work.store.get(f"{outcome.folder}/{PREDICTIONS}"))
    return {
        "summary": "\n\n".join(report.summary),
        **({"warnings": "\n\n".join(report.warnings)} if report.warnings else {}),
        "report": report_link(*stored, REPORT_HTML),
        **pictures(*stored, history, made=made),
        "best model": best,
        **{f"decision policy ({name})": found.sentence for name, found in report.policy.items()},
        "models": table(
            {
                "model": name,
                "macro-F1 (95 %)": score(model.f1_macro, model.f1_macro_ci95),
                "accuracy": share(model.accuracy),
                "ECE": number(model.calibration.ece),
                "docs/s": number(model.docs_per_second, 1),
            }
            for name, model in report.models.items()
        ),
        "label table": table(
            {"label": row.label, "F1": float(row.f1), "accuracy": float(row.accuracy), "support": row.support}
            for row in report.models[best].per_label
        ),
        **plotted(report.experiment, scores),
        "test documents": number(report.num_test, 0),
        "dagster/column_schema": column_schema(predictions.schema, COLUMNS),
        **pictures(*stored, {path: plots[path] for path in plots.keys() - history.keys()}, made=made),
    }


def sums_agree(work: Work) -> Finding:
    """Sums and label sets of the report agree with the predictions and the prepared data."""
    predictions = read_parquet(work.store.get(f"{work.place.inference}/{PREDICTIONS}"))
    labels = read_labels(work)
    return report_adds_up(read_report(work.store, work.place), predictions, labels)


def not_worse(work: Work) -> Finding:
    """No model is shown to be worse than the previous run's on the documents that both were tested on."""
    return not_worse_than_previous(read_report(work.store, work.place), work.settings.worse_than_previous)


def report_adds_up(report: Report, predictions: pa.Table, labels: Sequence[str]) -> Finding:
    """Do the report's sums and label sets agree with the predictions and with the prepared data's labels?"""
    read = read_predictions(predictions, report.labels, "predictions.parquet")
    problems = []
    if tuple(labels) != report.labels:
        problems.append(f"labels {list(report.labels)}, expected those of the prepared data {list(labels)}")
    if len(read) != report.num_test:
        problems.append(f"num_test {report.num_test}, expected {len(read)} predictions")
    if set(read.models) != set(report.models):
        problems.append(f"models {sorted(report.models)}, expected {sorted(read.models)}")
    for name, model in report.models.items():
        problems += [f"{name}: {problem}" for problem in _sums(report, name)]
        if {row.label for row in model.per_label} != set(report.labels):
            problems.append(f"{name}: per_label names other labels than the report")
    for pair in report.comparison:
        if pair.both_correct + pair.only_a + pair.only_b + pair.both_wrong != report.num_test:
            problems.append(f"{pair.a} and {pair.b}: the four counts do not add up to {report.num_test}")
    found = "; ".join(problems)
    return Finding(not problems, found or f"sums and labels of {report.num_test} documents agree", error=True)


def not_worse_than_previous(report: Report, worse_than_previous: Literal["warn", "block"]) -> Finding:
    """Is any model shown to be worse than the previous run's, on the documents both were scored on?"""
    blocks = worse_than_previous == "block"
    if not report.past.comparisons:
        return Finding(True, "no earlier run was scored on any of these test documents", error=blocks)
    latest = report.past.comparisons[0]
    worse = [pair for pair in latest.pairs if pair.verdict == pair.b]
    better = [pair for pair in latest.pairs if pair.verdict == pair.a]
    said = [
        f"{pair.a} is {'worse' if pair in worse else 'better'} than {pair.b}: macro-F1 {signed(pair.f1_difference)}, "
        f"95 % interval {signed(pair.f1_difference_ci95[0])} to {signed(pair.f1_difference_ci95[1])}"
        for pair in (*worse, *better)
    ]
    description = "; ".join(said) or f"{NO_DIFFERENCE} from run {latest.run}"
    return Finding(not worse, f"{description} ({latest.common_documents} common test documents)", error=blocks)


def _sums(report: Report, name: str) -> list[str]:
    model = report.models[name]
    problems = []
    total = sum(map(sum, model.confusion_matrix))
    if total != report.num_test:
        problems.append(f"the confusion matrix counts {total} documents, expected {report.num_test}")
    rows = dict(zip(report.labels, enumerate(model.confusion_matrix), strict=True))
    for label in model.per_label:
        index, row = rows.get(label.label, (0, None))
        if row is not None and (sum(row), row[index]) != (label.support, label.correct):
            problems.append(f"support or correct of {label.label!r} differ from the confusion matrix")
    if sum(entry.count for entry in model.calibration.bins) != report.num_test:
        problems.append(f"the calibration bins do not count {report.num_test} documents")
    return problems


report_checks = make_checks(
    INFERENCE_REPORT,
    Check(
        "report_adds_up",
        "Sums and label sets of the report agree with predictions and data.",
        sums_agree,
        blocking=True,
    ),
    Check(
        "not_worse_than_previous",
        "No model is shown to be worse than the previous run's (WORSE_THAN_PREVIOUS: a warning, or an error).",
        not_worse,
        blocking=True,
    ),
)
