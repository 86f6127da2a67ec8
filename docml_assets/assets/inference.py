"""inference_report, with its checks."""

import dagster as dg

from docml_assets.assets.checks import Check, Finding, make_checks
from docml_assets.assets.materialization import Results, materialize, run_asset
from docml_assets.assets.metadata import Metadata, column_schema, gallery, table
from docml_assets.assets.preparation import encoded_splits
from docml_assets.assets.training import best_torchscript_model
from docml_assets.report.checks import CheckOutcome, not_worse_than_previous, report_adds_up
from docml_assets.report.schema import read_report
from docml_assets.steps.inference import run_inference
from docml_assets.steps.preparation import read_labels
from docml_assets.steps.work import Outcome, Work
from docml_assets.tables import read_parquet
from docml_contract.names import INFERENCE_REPORT, PREDICTIONS, REPORT_HTML

COLUMNS = {
    "artifact_guid": "the document",
    "label": "its label",
    "group": "its SPLIT_BY value",
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
    yield from materialize(context, INFERENCE_REPORT, run_inference, _metadata)


def _metadata(work: Work, outcome: Outcome) -> Metadata:
    report = read_report(work.store, work.place)
    best = report.best_model
    scores: Metadata = {
        "f1_macro": float(report.models[best].f1_macro),
        "accuracy": float(report.models[best].accuracy),
    }
    for name, model in report.models.items():
        scores |= {
            f"f1_macro ({name})": float(model.f1_macro),
            f"f1_weighted ({name})": float(model.f1_weighted),
            f"accuracy ({name})": float(model.accuracy),
            f"ece ({name})": float(model.calibration.ece),
        }
    plots = [entry.path for entry in outcome.manifest.files if entry.path.startswith("plots/")]
    predictions = read_parquet(work.store.get(f"{outcome.folder}/{PREDICTIONS}"))
    return {
        "summary": "\n\n".join(report.summary),
        **({"warnings": "\n\n".join(report.warnings)} if report.warnings else {}),
        "report": _report_link(work, f"{outcome.folder}/{REPORT_HTML}"),
        "best model": best,
        "models": table(
            {
                "model": name,
                "macro-F1": float(model.f1_macro),
                "95 % from": float(model.f1_macro_ci95[0]),
                "95 % to": float(model.f1_macro_ci95[1]),
                "accuracy": float(model.accuracy),
                "documents a second": float(model.docs_per_second or 0.0),
                "latency, ms": float(model.latency_ms or 0.0),
            }
            for name, model in report.models.items()
        ),
        "label table": table(
            {"label": row.label, "F1": float(row.f1), "accuracy": float(row.accuracy), "support": row.support}
            for row in report.models[best].per_label
        ),
        **gallery(work.store, outcome.folder, plots),
        **scores,
        "test documents": report.num_test,
        "dagster/row_count": predictions.num_rows,
        "dagster/column_schema": column_schema(predictions.schema, COLUMNS),
    }


def _report_link(work: Work, key: str) -> dg.MetadataValue:
    uri = work.store.uri(key)
    return dg.MetadataValue.path(uri) if work.store.local_path is not None else dg.MetadataValue.url(uri)


def sums_agree(work: Work) -> Finding:
    """Sums and label sets of the report agree with the predictions and the prepared data."""
    predictions = read_parquet(work.store.get(f"{work.place.inference}/{PREDICTIONS}"))
    labels = read_labels(work)
    return _finding(report_adds_up(read_report(work.store, work.place), predictions, labels))


def not_worse(work: Work) -> Finding:
    """No model is shown to be worse than the previous run's on the documents that both were tested on."""
    return _finding(not_worse_than_previous(read_report(work.store, work.place), work.settings.worse_than_previous))


def _finding(outcome: CheckOutcome) -> Finding:
    return Finding(passed=outcome.passed, text=outcome.description, error=outcome.blocks)


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
