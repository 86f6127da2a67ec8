"""What the asset checks of `inference_report` ask; no Dagster here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from docml_assets.report.predictions import read_predictions
from docml_assets.report.schema import NO_DIFFERENCE, Report


@dataclass(frozen=True)
class CheckOutcome:
    """The answer to one question about a report."""

    passed: bool
    description: str
    blocks: bool = False  # whether a failure is an error rather than a warning


def report_adds_up(report: Report, predictions: pa.Table, labels: Sequence[str]) -> CheckOutcome:
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
    return CheckOutcome(not problems, found or f"sums and labels of {report.num_test} documents agree", blocks=True)


def not_worse_than_previous(report: Report, worse_than_previous: Literal["warn", "block"]) -> CheckOutcome:
    """Is any model shown to be worse than the previous run's, on the documents both were scored on?"""
    blocks = worse_than_previous == "block"
    if not report.past.comparisons:
        return CheckOutcome(True, "no earlier run was scored on any of these test documents", blocks)
    latest = report.past.comparisons[0]
    worse = [pair for pair in latest.pairs if pair.verdict == pair.b]
    better = [pair for pair in latest.pairs if pair.verdict == pair.a]
    said = [
        f"{pair.a} is {'worse' if pair in worse else 'better'} than {pair.b}: macro-F1 {pair.f1_difference:+.3f}, "
        f"95 % interval {pair.f1_difference_ci95[0]:+.3f} to {pair.f1_difference_ci95[1]:+.3f}"
        for pair in (*worse, *better)
    ]
    description = "; ".join(said) or f"{NO_DIFFERENCE} from run {latest.run}"
    return CheckOutcome(not worse, f"{description} ({latest.common_documents} common test documents)", blocks)


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
