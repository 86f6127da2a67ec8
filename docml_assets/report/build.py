"""Everything that the folder `inference/` of a run holds, made from what the inference job left."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from docml_assets.report.comparison import (
    PreviousRun,
    against_the_past,
    compare_pairs,
    disagreements,
    label_winners,
    score_history,
)
from docml_assets.report.evidence import Evidence, Lineage
from docml_assets.report.learning_curve import CurveAnswers, score_curve
from docml_assets.report.page import render_page
from docml_assets.report.plots import draw_plots
from docml_assets.report.policy import model_policy
from docml_assets.report.predictions import (
    BASELINE_OF_VALUES,
    GROUP,
    GUID,
    LABEL,
    Predictions,
    read_predictions,
    with_baseline,
    with_groups,
    with_probabilities,
)
from docml_assets.report.schema import (
    Bin,
    Calibration,
    LabelWinner,
    LearningCurve,
    LikelyLabel,
    ModelPolicy,
    ModelReport,
    Nearness,
    PastScore,
    PerLabel,
    Report,
    Suspects,
    UnitReport,
    UnitScores,
)
from docml_assets.report.seeds import SeedAnswers, judge_pairs, model_seeds, sample_seeds
from docml_assets.report.statistics import (
    LabelScores,
    calibration,
    confusion_matrix,
    interval,
    label_scores,
    resampled_f1,
)
from docml_assets.report.summary import summarize, warnings
from docml_assets.tables import parquet_bytes
from docml_contract.base import digest
from docml_contract.names import BASELINE, PREDICTION_SUFFIX, PROBABILITIES_SUFFIX, PROBABILITY_SUFFIX


@dataclass(frozen=True)
class ReportFiles:
    """The files of a finished report, and what is worth saying about them."""

    report: Report
    report_json: bytes
    html: bytes
    predictions_parquet: bytes
    unit_predictions_parquet: bytes | None
    plots: Mapping[str, bytes]  # file name (such as scores.png) -> PNG
    data_version: str  # of predictions and scores: not of timings, nor of anything else that differs between equal runs

    @property
    def summary(self) -> tuple[str, ...]:
        """The report's three sentences."""
        return self.report.summary

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know before trusting the numbers."""
        return self.report.warnings


def build_report(
    *,
    experiment: str,
    run: int,
    predictions: pa.Table,
    labels: Sequence[str],
    documents: pa.Table,
    timings: Mapping[str, Any],
    history: Mapping[str, Sequence[Mapping[str, Any]]],
    lineage: Lineage,
    previous: Sequence[PreviousRun],
    settings: Mapping[str, Mapping[str, str]],
    excerpts: Callable[[str], str],
    baseline: pa.Table | None = None,
    group_column: str | None = None,
    groups: Mapping[str, str | None] | None = None,
    target: float | None = None,
    validation: pa.Table | None = None,
    changed: Sequence[str] = (),
    seeds: SeedAnswers | None = None,
    prepared: Mapping[str, Any] | None = None,
    units: "UnitAnswers | None" = None,
    curve: CurveAnswers | None = None,
) -> ReportFiles:
    """Report on a run. ReportError where the predictions cannot be reported on (an empty test split, labels of other data).

    predictions, documents, timings: predictions.parquet, documents.parquet and timings.json of the inference job. labels: in the order
    of their ids. history: model -> rows of its history.json. previous: the experiment's earlier runs with a finished report. settings:
    section -> key -> value, as written. excerpts: GUID -> the beginning of the document's text, "" where it has none; called for a few dozen documents.
    baseline: baseline.parquet of the prepared data. group_column: SPLIT_BY, and groups: GUID -> its value (null: on its own); intervals then resample groups.
    target: AUTO_ACCEPT_PRECISION, and validation: what the job answered on the validation split, where a decision policy is made.
    changed: what the run changed from the latest of `previous`. seeds: where the models were trained with several. units: where the answers
    are about artifacts, those about their units.
    curve: what the first model answered after training on parts of the documents. prepared: what split_metadata.json says of the
    baseline: its learning curve, and how near documents are to train's.
    """
    table = with_probabilities(predictions, documents)
    table = table if baseline is None else with_baseline(table, baseline)
    table = table if groups is None else with_groups(table, groups)
    table = table.select(_columns(table)).sort_by(GUID)
    read = read_predictions(table, labels, f"predictions of {experiment} run {run}")
    if (prepared or {}).get("inputs") == "pooled values":
        read = replace(read, baseline=BASELINE_OF_VALUES)
    policies = {}
    if target is not None and validation is not None:
        policies = {
            model: model_policy(target, labels, model, validation, documents) for model in read.without_baseline.models
        }
    report = assess(experiment, run, read, timings, previous, policies, changed, seeds)
    report = report.model_copy(update=_prepared(prepared or {}) if baseline is not None else {})
    if curve is not None:
        whole = list(seeds.predictions.values()) if seeds else [predictions]
        report = report.model_copy(update={"model_curve": score_curve(read, whole, curve)})
    if units is not None:
        report = report.model_copy(update={"units": assess_units(units, labels, f"units of {experiment} run {run}")})
    evidence = Evidence.gather(read.without_baseline, documents, history, excerpts)
    return ReportFiles(
        report=report,
        report_json=report.to_bytes(),
        html=render_page(report, evidence, lineage, settings, timings, group_column).encode(),
        predictions_parquet=parquet_bytes(table),
        unit_predictions_parquet=parquet_bytes(units.named) if units is not None else None,
        plots=draw_plots(report, evidence),
        data_version=report_version(table, report)
        if units is None
        else digest([report_version(table, report), _said(units.named)]),
    )


def assess(
    experiment: str,
    run: int,
    read: Predictions,
    timings: Mapping[str, Any],
    previous: Sequence[PreviousRun],
    policies: Mapping[str, ModelPolicy],
    changed: Sequence[str] = (),
    seeds: SeedAnswers | None = None,
) -> Report:
    """All the numbers and sentences of report.json."""
    own = read.without_baseline
    scores = {
        model: label_scores(confusion_matrix(read.truth, ids, len(read.labels)))
        for model, ids in read.predicted.items()
    }
    resampled = resampled_f1(read)
    f1 = {model: score.f1_macro for model, score in scores.items()}
    models = {
        model: _model_report(read, model, scores[model], interval(f1[model], resampled[model]), timings)
        for model in read.models
    }
    comparison = compare_pairs(read, f1, resampled)
    samples = sample_seeds(seeds, read) if seeds else {}
    comparison = judge_pairs(comparison, samples) if seeds else comparison
    seeded = model_seeds(seeds, samples) if seeds else {}
    past = against_the_past(own, previous)
    return Report(
        experiment=experiment,
        run=run,
        num_test=len(read),
        labels=read.labels,
        models=models,
        baseline=read.baseline if BASELINE in models else None,
        comparison=tuple(comparison),
        label_winners=_label_winners(own, scores),
        disagreements=len(disagreements(own)),
        majority_share=float(next(iter(scores.values())).support.max() / len(read)),
        past=past,
        history=score_history(
            run,
            own,
            {
                name: PastScore(f1_macro=models[name].f1_macro, f1_macro_ci95=models[name].f1_macro_ci95)
                for name in own.models
            },
            changed,
            previous,
        ),
        policy=dict(policies),
        seeds=seeded,
        summary=summarize(own, models, comparison, past, seeded),
        warnings=tuple(warnings(own, scores, past)),
    )


def _prepared(said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the report that preparation has found; older data have none."""
    curve, suspects = (said.get(key, {"none": "older data"}) for key in ("learning_curve", "suspects"))
    return {
        "suspects": None
        if "none" in suspects
        else Suspects(
            documents=suspects["documents"],
            share=suspects["share"],
            share_upper95=suspects.get("share_upper95"),
            pairs=tuple(
                LikelyLabel(label=row["label"], likely_label=row["likely_label"], documents=row["count_all"])
                for row in suspects["pairs"]
            ),
        ),
        "learning_curve": None if "none" in curve else LearningCurve.model_validate(curve),
        "nearest_train": {
            name: Nearness.model_validate(found) for name, found in said.get("nearest_train", {}).items()
        },
    }


def _label_winners(own: Predictions, scores: Mapping[str, LabelScores]) -> tuple[LabelWinner, ...]:
    """Empty for a single model; the baseline takes no part."""
    if len(own.models) < 2:
        return ()
    return tuple(label_winners({model: scores[model] for model in own.models}, own.labels))


@dataclass(frozen=True)
class UnitAnswers:
    """What the models said of the units. predictions: as the job left them, with the columns that a report's have; artifact_guid names
    artifact and unit. named: the same with a column for each. groups: by these GUIDs, what depends on each other. combine: as UnitReport's.
    """

    predictions: pa.Table
    named: pa.Table
    groups: Mapping[str, str]
    combine: str | None


def assess_units(units: UnitAnswers, labels: Sequence[str], source: str) -> UnitReport:
    """The scores of the units."""
    read = read_predictions(with_groups(units.predictions, units.groups), labels, source)
    resampled = resampled_f1(read)
    models = {}
    for model, ids in read.predicted.items():
        scores = label_scores(confusion_matrix(read.truth, ids, len(read.labels)))
        models[model] = UnitScores(
            accuracy=scores.total_accuracy,
            f1_macro=scores.f1_macro,
            f1_weighted=scores.f1_weighted,
            f1_macro_ci95=interval(scores.f1_macro, resampled[model]),
        )
    return UnitReport(num_test=len(read), combine=units.combine, models=models)


def _said(predictions: pa.Table) -> list[Any]:
    """What of a table of predictions means something: probabilities differ in their last digits."""
    said = [name for name in predictions.column_names if not name.endswith((PROBABILITY_SUFFIX, PROBABILITIES_SUFFIX))]
    return [[predictions[name].to_pylist() for name in said], said]


def report_version(predictions: pa.Table, report: Report) -> str:
    """Data version of a report: its predictions and scores.

    Probabilities differ in their last digits between batch sizes and machines, so they enter by the calibration error to four digits.
    """
    scores = {
        name: [
            model.accuracy,
            model.f1_macro,
            model.f1_weighted,
            list(model.f1_macro_ci95),
            round(model.calibration.ece, 4),
        ]
        for name, model in report.models.items()
    }
    policies = {name: policy.meaning for name, policy in report.policies.items()}
    seeds = {name: [[score.seed, score.f1_macro] for score in found.scores] for name, found in report.seeds.items()}
    points = [list(point) for point in report.model_curve.points] if report.model_curve else []
    meaning = ["report", list(report.labels), *_said(predictions), scores]
    return digest([*meaning, *(part for part in (policies, seeds, points) if part)])


def _model_report(
    predictions: Predictions,
    name: str,
    scores: LabelScores,
    bounds: tuple[float, float],
    timings: Mapping[str, Any],
) -> ModelReport:
    predicted = predictions.predicted[name]
    ece, bins = calibration(predictions.probability[name], predicted == predictions.truth)
    rows = [
        PerLabel(
            label=label,
            f1=float(scores.f1[index]),
            accuracy=float(scores.accuracy[index]),
            precision=float(scores.precision[index]),
            recall=float(scores.recall[index]),
            support=int(scores.support[index]),
            correct=int(scores.correct[index]),
        )
        for index, label in enumerate(predictions.labels)
    ]
    measured = timings.get("models", {}).get(name, {})
    return ModelReport(
        accuracy=scores.total_accuracy,
        f1_macro=scores.f1_macro,
        f1_weighted=scores.f1_weighted,
        f1_macro_ci95=bounds,
        per_label=tuple(sorted(rows, key=lambda row: (-row.f1, row.support == 0, row.label))),
        confusion_matrix=tuple(map(tuple, scores.confusion.tolist())),
        calibration=Calibration(ece=ece, bins=tuple(Bin(**asdict(entry)) for entry in bins)),
        docs_per_second=measured.get("docs_per_second"),
        latency_ms=measured.get("latency_ms"),
        torchscript_sha256=measured.get("torchscript_sha256"),
    )


def _columns(table: pa.Table) -> list[str]:
    """The columns of the contract, whatever else the job added."""
    kept = [
        name
        for name in table.column_names
        if name.endswith((PREDICTION_SUFFIX, PROBABILITY_SUFFIX, PROBABILITIES_SUFFIX))
    ]
    return [name for name in (GUID, LABEL, *kept, GROUP) if name in table.column_names]
