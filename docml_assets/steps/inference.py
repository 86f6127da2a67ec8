"""inference_report: every model of the run on the test split, and what can be said about it."""


from docml_assets.steps import specs
from docml_assets.steps.finished import finished
from docml_assets.steps.preparation import prepared
from docml_assets.steps.training import models, version
from docml_assets.steps.work import INFERENCE, Outcome, Work
from docml_contract.names import (
    PREDICTIONS,
    REPORT_HTML,
    REPORT_JSON,
)
from docml_contract.versions import CODE_VERSIONS, cache_key
from resources.finished import publish_bytes

ASSET = "inference_report"


def inference(work: Work) -> Outcome | None:
    """Predict and report. None where the step is not performed and nothing fits."""
    folder = work.place.inference
    done = finished(work, folder)
    if done is not None:
        return done
    if not work.performs(INFERENCE):
        return _skip(work)
    data = prepared(work)
    folders, manifests = models(work)
    inputs = {"encoded_splits": data.data_version, "best_torchscript_model": version(manifests)}
    exported = {name: _exported(work, folder, manifests[name]) for name, folder in folders.items()}
    spec = specs.inference(work, prepared=data.folder, models=exported, inputs=inputs)
    result = work.jobs.run(spec, {}, holder=work.holder, listener=work.reporter.listener(None))
    report = _report(work, data, folders, inputs, result)
    manifest = publish_bytes(
        work.store,
        folder,
        {
            REPORT_JSON: report.report_json,
            REPORT_HTML: report.html,
            PREDICTIONS: report.predictions_parquet,
            **{f"plots/{name}": png for name, png in report.plots.items()},
        },
        asset=ASSET,
        experiment=work.place.experiment,
        run=work.place.number,
        cache_key=cache_key(ASSET, spec=spec.spec_hash),
        data_version=report.data_version,
        inputs=inputs,
        code_version=CODE_VERSIONS[ASSET],
    )
    return Outcome(
        asset=ASSET,
        how="made",
        why="; ".join(report.summary[:1]) or "predicted and reported",
        data_version=manifest.data_version,
        inputs=manifest.inputs,
        folders={"": folder},
        manifests={"": manifest},
        jobs=(result,),
    )
