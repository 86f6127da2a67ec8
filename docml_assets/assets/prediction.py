"""classified_documents, with its check: documents of production, classified with the run's model."""

import dagster as dg
import pyarrow.compute as pc

from docml_assets.assets.checks import Check, Finding, make_checks
from docml_assets.assets.materialization import Results, materialize, run_asset
from docml_assets.assets.metadata import Metadata, column_schema, table
from docml_assets.assets.training import best_torchscript_model
from docml_assets.numbers import number
from docml_assets.steps.prediction import newest_prediction, run_prediction
from docml_assets.steps.work import Outcome, Work
from docml_assets.tables import read_parquet
from docml_contract.names import CLASSIFIED_DOCUMENTS, PREDICTION_COLUMNS, PREDICTIONS

CONFIG = {
    "query": dg.Field(
        dg.Noneable(str), default_value=None, description="one SELECT yielding artifact_guid; none: PREDICT_QUERY"
    ),
    "model": dg.Field(
        dg.Noneable(str),
        default_value=None,
        description="the model, where the run compares several; none: the best one in the report",
    ),
}


@run_asset(
    CLASSIFIED_DOCUMENTS,
    deps=[best_torchscript_model],
    group="serving",
    kinds={"torchscript", "parquet"},
    description="Documents of production that a SELECT names (PREDICT_QUERY, or run config), classified with the run's model: one row a "
    "document, errors as rows. Only documents that are new or have changed go through a job. Does nothing unless asked.",
    config_schema=CONFIG,
)
def classified_documents(context: dg.AssetExecutionContext) -> Results:
    """Classify the production documents that the query names; nothing unless asked."""
    asked = context.op_execution_context.op_config
    yield from materialize(
        context,
        CLASSIFIED_DOCUMENTS,
        lambda work: run_prediction(work, asked["query"], asked["model"]),
        _metadata,
    )


def _metadata(work: Work, outcome: Outcome) -> Metadata:
    predictions = read_parquet(work.store.get(f"{outcome.folder}/{PREDICTIONS}"))
    counts = predictions["prediction"].drop_null().value_counts().to_pylist()
    accepted = pc.sum(predictions["accepted"]).as_py()
    return {
        "documents": number(predictions.num_rows, 0),
        "errors": number(predictions.num_rows - predictions["error"].null_count, 0),
        **({"accepted without a person": number(accepted, 0)} if accepted is not None else {}),
        "labels": table(
            {"label": entry["values"], "documents": entry["counts"]}
            for entry in sorted(counts, key=lambda entry: -entry["counts"])
        ),
        "dagster/column_schema": column_schema(
            predictions.schema, {name: said for name, (_, said) in PREDICTION_COLUMNS.items()}
        ),
    }


def few_errors(work: Work) -> Finding:
    """No more documents went without an answer than MAX_FAILED_SHARE allows."""
    found = newest_prediction(work)
    if found is None:
        return Finding(passed=True, text="nothing has been classified with this run's model")
    errors = read_parquet(work.store.get(f"{found}/{PREDICTIONS}"))["error"]
    failed, allowed = len(errors) - errors.null_count, work.settings.max_failed_share
    return Finding(
        passed=failed <= allowed * len(errors),
        text=f"{failed:,} of {len(errors):,} documents have no answer (allowed by MAX_FAILED_SHARE: {allowed:.2%}); why stands in the "
        f"column error of {work.store.uri(found)}/{PREDICTIONS}",
        error=True,
    )


prediction_checks = make_checks(
    CLASSIFIED_DOCUMENTS,
    Check("few_errors", "No more documents than MAX_FAILED_SHARE allows went without an answer.", few_errors),
)
