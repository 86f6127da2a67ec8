"""report.html: one self-contained page. Everything in it is escaped, and it can load nothing: documents are untrusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from docml_assets.numbers import duration, number, p_value, setting, share, signed
from docml_assets.report.evidence import Evidence, Lineage
from docml_assets.report.learning_curve import chart, gains, model_curves
from docml_assets.report.plots import COLORS
from docml_assets.report.schema import NO_DIFFERENCE, Calibration, ModelReport, Report
from docml_assets.report.svg import Chart, Series

TEMPLATE = "page.html.j2"
MATRIX_LABELS = 100  # up to which the page shows the confusion matrix itself
SHOWN_CONFUSIONS = 20


@dataclass(frozen=True)
class Cell:
    """One entry of the confusion matrix as the page shows it."""

    count: int
    share: float  # of the row, the label's documents
    right: bool


@dataclass(frozen=True)
class Confusion:
    """Documents of `label` that were given the label `taken_for`."""

    label: str
    taken_for: str
    count: int
    support: int


def render_page(
    report: Report,
    evidence: Evidence,
    lineage: Lineage,
    settings: Mapping[str, Mapping[str, str]],
    timings: Mapping[str, Any],
    group_column: str | None,
) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, share=share, duration=duration, signed=signed, p_value=p_value, setting=setting
    )
    names = list(report.models)
    return environment.get_template(TEMPLATE).render(
        report=report,
        evidence=evidence,
        lineage=lineage,
        settings=settings,
        timings=timings,
        group_column=group_column,
        no_difference=NO_DIFFERENCE,
        css_of={name: f"m{index % len(COLORS)}" for index, name in enumerate(names)},
        colors=COLORS,
        f1_by_label={name: {row.label: row for row in model.per_label} for name, model in report.models.items()},
        winners={winner.label: winner for winner in report.label_winners},
        matrices={name: matrix(model) for name, model in report.models.items()}
        if len(report.labels) <= MATRIX_LABELS
        else {},
        confusions={name: confusions(report, model) for name, model in report.models.items()},
        gains=gains(report),
        curves=model_curves(report),
        charts=charts(report, evidence),
    )


def matrix(model: ModelReport) -> list[list[Cell]]:
    """The confusion matrix, with shares of the rows."""
    rows = []
    for index, row in enumerate(model.confusion_matrix):
        support = sum(row)
        rows.append([Cell(count, count / support if support else 0.0, index == at) for at, count in enumerate(row)])
    return rows


def confusions(report: Report, model: ModelReport) -> list[Confusion]:
    """The most frequent confusions."""
    found = [
        Confusion(label, taken_for, count, sum(row))
        for index, (label, row) in enumerate(zip(report.labels, model.confusion_matrix, strict=True))
        for at, (taken_for, count) in enumerate(zip(report.labels, row, strict=True))
        if index != at and count
    ]
    return sorted(found, key=lambda confusion: (-confusion.count, confusion.label, confusion.taken_for))[
        :SHOWN_CONFUSIONS
    ]


def charts(report: Report, evidence: Evidence) -> dict[str, Any]:
    """Inline SVG by name; empty where there is nothing to draw."""
    css = {name: f"m{index % len(COLORS)}" for index, name in enumerate(report.models)}
    return {
        "calibration": Chart(
            "probability of the predicted label",
            "share that is right",
            [
                *(_reliability(name, model.calibration, css[name]) for name, model in report.models.items()),
                *(
                    _reliability(f"{name} after temperature", found.calibration, css[name], dashed=True)
                    for name, found in report.policy.items()
                    if found.calibration
                ),
            ],
            x_range=(0, 1),
            y_range=(0, 1),
            diagonal=True,
        ).svg(),
        "lengths": Chart(
            "length in tokens",
            "share labelled wrongly",
            [_error(name, evidence, css[name]) for name in evidence.lengths],
        ).svg(),
        "history": Chart(
            "run",
            "macro-F1 on these test documents",
            _history(report, css),
            whole_x=True,
        ).svg()
        if len(report.history) > 1
        else "",
        "learning_curve": chart(report, css).svg(),
        "policy": Chart(
            "coverage: share of the documents accepted",
            "precision: share of these that is right",
            _policies(report, css),
            x_range=(0, 1),
        ).svg(),
        "losses": _curves(evidence, css, "loss", (("train_loss", True), ("valid_loss", False))),
        "scores": _curves(
            evidence,
            css,
            "validation score",
            (("valid_accuracy", True), ("valid_f1_epoch", False), ("valid_f1", False)),
        ),
    }


def _reliability(name: str, found: Calibration, css: str, *, dashed: bool = False) -> Series:
    filled = [entry for entry in found.bins if entry.confidence is not None and entry.accuracy is not None]
    return Series(
        name,
        css,
        [(entry.confidence or 0.0, entry.accuracy or 0.0) for entry in filled],
        dashed=dashed,
        titles=[
            f"{name}: {entry.count} documents, mean probability {entry.confidence:.3f}, {share(entry.accuracy)} right"
            for entry in filled
        ],
    )


def _history(report: Report, css: Mapping[str, str]) -> list[Series]:
    """One line a model's name over the runs; a model that this run has not takes the colour of the first."""
    names = dict.fromkeys(name for entry in reversed(report.history) for name in entry.models)
    series = []
    for name in names:
        found = [(entry.run, entry.models[name]) for entry in report.history if name in entry.models]
        series.append(
            Series(
                name,
                css.get(name, "m0"),
                [(run, score.f1_macro) for run, score in found],
                band=[(run, *score.f1_macro_ci95) for run, score in found],
                dashed=name not in css,
                titles=[f"{name}, run {run}: {score.f1_macro:.3f}" for run, score in found],
            )
        )
    return series


def _policies(report: Report, css: Mapping[str, str]) -> list[Series]:
    """Precision by coverage of every model, its chosen point, and the target."""
    series = []
    for name, found in report.policy.items():
        chosen, points = found.policy.test, [(point.coverage, point.precision) for point in found.curve]
        titles = [
            f"{name}: {share(point.precision)} right of the {share(point.coverage)} with a confidence of {point.threshold:.3f} and more"
            for point in found.curve
        ]
        series.append(Series(name, css[name], points, titles=titles))
        target = found.policy.target
        series.append(Series("target", f"{css[name]} target", [(0, target), (1, target)], dashed=True))
        if chosen.precision is not None:
            title = f"{name}, as the policy chose: {share(chosen.precision)} right of {share(chosen.coverage)}"
            series.append(Series(name, f"{css[name]} chosen", [(chosen.coverage, chosen.precision)], titles=[title]))
    return series


def _error(name: str, evidence: Evidence, css: str) -> Series:
    bins = evidence.lengths[name]
    middle = [entry.middle for entry in bins]
    return Series(
        name,
        css,
        [(x, entry.error) for x, entry in zip(middle, bins, strict=True)],
        band=[(x, entry.low, entry.high) for x, entry in zip(middle, bins, strict=True)],
        titles=[
            f"{name}: {entry.count} documents of {entry.shortest} to {entry.longest} tokens, {share(entry.error)} wrong"
            for entry in bins
        ],
    )


def _curves(evidence: Evidence, css: Mapping[str, str], y_label: str, metrics: Sequence[tuple[str, bool]]) -> Any:
    """One line a model and metric. Of valid_f1_epoch and valid_f1 (the best so far) only the former, where it was kept."""
    series = []
    for name, curves in evidence.curves.items():
        for metric, dashed in metrics:
            if metric not in curves or (metric == "valid_f1" and "valid_f1_epoch" in curves):
                continue
            points = curves[metric]
            titles = [f"{name}: {metric} {value:.4g} after epoch {epoch:g}" for epoch, value in points]
            series.append(Series(name, css[name], points, dashed=dashed, titles=titles))
    return Chart("epoch", y_label, series, whole_x=True).svg()
