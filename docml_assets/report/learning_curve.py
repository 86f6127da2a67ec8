"""Scores by number of documents: of the run's first model, and as a picture beside the baseline's."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from docml_assets.errors import ReportError
from docml_assets.report.predictions import Predictions, read_predictions
from docml_assets.report.schema import Forecast, LearningCurve, Report
from docml_assets.report.statistics import LabelScores, confusion_matrix, label_scores
from docml_assets.report.svg import Chart, Series
from docml_contract.learning_curve import FEWEST_FITS, describe_curve
from docml_contract.names import BASELINE


@dataclass(frozen=True)
class CurveAnswers:
    """How many train documents there are, and what the first model answered on the test split after training on so many of them."""

    documents: int
    parts: Sequence[tuple[int, pa.Table]]


def score_curve(read: Predictions, whole: Sequence[pa.Table], answers: CurveAnswers) -> LearningCurve | None:
    """The curve of the first model on the test documents; None where it was trained on too few parts. ReportError.

    whole: what it answered after training on all train documents, once a seed.
    """
    if len(answers.parts) + len(whole) < FEWEST_FITS:
        return None
    fits = [*((answers.documents, table) for table in whole), *answers.parts]
    scores = [_scores(read, table) for _, table in fits]
    present = scores[0].present
    names = [label for label, has in zip(read.labels, present, strict=True) if has]
    sizes = np.array([size for size, _ in fits])
    return LearningCurve.model_validate(describe_curve(sizes, np.array([score.f1[present] for score in scores]), names))


def _scores(read: Predictions, table: pa.Table) -> LabelScores:
    model = read.models[0]
    found = read_predictions(table, read.labels, f"predictions of {model} for its learning curve")
    if found.guids.tolist() != read.guids.tolist():
        raise ReportError(f"the learning curve of {model} is of other documents than the run's test split")
    return label_scores(confusion_matrix(read.truth, found.predicted[model], len(read.labels)))


def model_curves(report: Report) -> dict[str, LearningCurve]:
    """By the model's name, the baseline's among them."""
    found = {next(iter(report.models)): report.model_curve, BASELINE: report.learning_curve}
    return {name: curve for name, curve in found.items() if curve is not None}


def gains(report: Report) -> list[tuple[str, Forecast]]:
    """The labels' forecasts, the model's where it has a curve, the largest gain first."""
    labels = next(iter(model_curves(report).values())).labels if model_curves(report) else {}
    return sorted(labels.items(), key=lambda item: (item[1].now - item[1].forecast, item[0]))


def chart(report: Report, css: Mapping[str, str]) -> Chart:
    """Each curve's means by size as dots, and its forecast as a dashed line with the interval."""
    return Chart(
        "train documents",
        "macro-F1",
        [line for name, curve in model_curves(report).items() for line in _lines(name, css[name], curve)],
    )


def _lines(name: str, css: str, curve: LearningCurve) -> list[Series]:
    sizes = sorted({size for size, _ in curve.points})
    means = [statistics.fmean(score for at, score in curve.points if at == size) for size in sizes]
    then = curve.f1_macro
    low, high = then.interval80
    return [
        Series(
            name,
            css,
            list(zip(sizes, means, strict=True)),
            titles=[f"{name}, {n:,} documents: {y:.3f}" for n, y in zip(sizes, means, strict=True)],
        ),
        Series(
            f"{name}, forecast",
            css,
            [(sizes[-1], then.now), (curve.documents, then.forecast)],
            band=[(sizes[-1], then.now, then.now), (curve.documents, low, high)],
            dashed=True,
            titles=["", f"{name}, {curve.documents:,} documents: {then.forecast:.3f} ({low:.3f} to {high:.3f})"],
        ),
    ]
