"""The whole system on one screen.

    production_labels ─┐
    production_files ──┼─> reconciled_data ─> label_counts ─┐
    experiment_snapshot┘          └────────────────────────┴─> encoded_splits ─> best_torchscript_model ─> inference_report
                                                                                           ├─> deployed_endpoint ─> production
                                                                                           └─> classified_documents

Nothing here reads the environment or opens a client: resources do, when a run uses them.
"""

import dagster as dg

from docml_assets.assets import endpoints, inference, prediction, preparation, reconciliation, sources, training
from docml_assets.deployment import Deployment
from docml_assets.sensors.experiments import experiment_sensor
from docml_assets.sensors.new_data import new_data_sensor
from docml_assets.sensors.new_documents import new_documents_sensor
from docml_assets.sensors.run_failures import orphaned_endpoints_sensor, orphaned_jobs_sensor, run_failure_sensor


def _resource(name: str, description: str) -> dg.ResourceDefinition:
    """A part of the deployment as a Dagster resource, made when a run first uses it."""
    return dg.ResourceDefinition(
        lambda context: getattr(context.resources.deployment, name),
        description=description,
        required_resource_keys={"deployment"},
    )


RESOURCES = {
    "deployment": dg.ResourceDefinition(
        lambda _: Deployment.current(), description="DOCML_* environment variables, read when a run starts."
    ),
    "store": _resource("store", "DOCML_STORE: where experiments keep data, models and reports."),
    "production": _resource("production", "DOCML_PRODUCTION_FILES: the documents' files in production; only read."),
    "labels": _resource("labels", "DOCML_LABELS_URL: the database that LABELS_QUERY asks."),
    "jobs": _resource("jobs", "DOCML_ENV: jobs as subprocesses (local) or on SageMaker (aws), each run exactly once."),
    "endpoints": _resource("endpoints", "DOCML_ENV: endpoints as processes (local) or on SageMaker (aws)."),
    "tracking": _resource("tracking", "The Weights & Biases account that trainings report to."),
}


run_experiment = dg.define_asset_job(
    "run_experiment",
    # The check that looks at production is for people and for the data sensor: a finished run never reads production again.
    selection=dg.AssetSelection.all()
    - dg.AssetSelection.groups("production", "serving")
    - dg.AssetSelection.checks(prediction.prediction_checks)
    - dg.AssetSelection.checks(reconciliation.production_unchanged),
    description="One run of an experiment, from labels and files to the report. Finished steps launch nothing.",
)

classify_documents = dg.define_asset_job(
    "classify_documents",
    selection=dg.AssetSelection.assets(prediction.classified_documents),
    description="Documents of production, classified with the model of a finished run.",
)

defs = dg.Definitions(
    assets=[
        sources.production_labels,
        sources.production_files,
        sources.experiment_snapshot,
        reconciliation.reconciled_data,
        reconciliation.label_counts,
        preparation.encoded_splits,
        training.best_torchscript_model,
        inference.inference_report,
        endpoints.deployed_endpoint,
        endpoints.production,
        prediction.classified_documents,
    ],
    asset_checks=[
        reconciliation.data_checks,
        reconciliation.production_unchanged,
        reconciliation.count_checks,
        preparation.split_checks,
        training.model_checks,
        inference.report_checks,
        prediction.prediction_checks,
    ],
    jobs=[run_experiment, classify_documents],
    sensors=[
        experiment_sensor,
        new_data_sensor,
        new_documents_sensor,
        orphaned_jobs_sensor,
        orphaned_endpoints_sensor,
        run_failure_sensor,
    ],
    resources=RESOURCES,
    executor=dg.in_process_executor,
)
