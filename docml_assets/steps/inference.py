"""inference_report: every model of the run on the test split, and what can be said about it."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from docml_assets.steps import specs
from docml_assets.steps.errors import NotReady
from docml_assets.steps.excerpts import excerpts
from docml_assets.steps.finished import earlier_runs, finished, reused, take_earlier
from docml_assets.steps.preparation import prepared
from docml_assets.steps.training import models, version
from docml_assets.steps.work import Outcome, Work
from docml_assets.tables import read_parquet
from docml_contract.jobs import ExportedModel
from docml_contract.manifests import Manifest, PreparedData
from docml_contract.names import (
    DOCUMENTS,
    EXPORT,
    HISTORY,
    ID2LABEL,
    INFERENCE,
    PREDICTIONS,
    REPORT_HTML,
    REPORT_JSON,
    SPLITS_TABLE,
    TIMINGS,
    TORCHSCRIPT,
    RunPlace,
)
from docml_contract.versions import CODE_VERSIONS, cache_key
from resources.jobs.engine.records import job_records
from resources.jobs.interface import JobResult
from resources.store.manifests import publish_bytes, read_manifest

if TYPE_CHECKING:
    from docml_assets.report.build import ReportFiles
    from docml_assets.report.earlier_runs import PreviousRun
    from docml_assets.report.evidence import Lineage

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
    exported = {name: _exported(work, folders[name], manifests[name]) for name in work.settings.model_names}
    spec = specs.inference(work, prepared=data.folder, models=exported, inputs=inputs)
    result = work.jobs.run(spec, {}, holder=work.holder, listener=work.reporter.listener(None))
    report = _report(work, data, folders, manifests, result)
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
        why=report.summary[0],
        data_version=manifest.data_version,
        inputs=manifest.inputs,
        folders={"": folder},
        manifests={"": manifest},
        jobs=(result,),
    )


def _skip(work: Work) -> Outcome | None:
    """Take the newest earlier run's report on the same models and data. Nothing comes after it, so that none is no error."""
    own = work.place.inference
    try:
        inputs = {
            "encoded_splits": prepared(work).data_version,
            "best_torchscript_model": version(models(work)[1]),
        }
    except NotReady:
        return None
    taken = take_earlier(work, lambda place: {"": place.inference}, {"": own}, lambda found: found[""].inputs == inputs)
    return reused(ASSET, taken, {"": own}, taken[""].data_version) if taken is not None else None


def _exported(work: Work, folder: str, manifest: Manifest) -> ExportedModel:
    return ExportedModel(
        path=folder.removeprefix(f"{work.place.experiment}/"),
        torchscript_sha256=manifest.file(TORCHSCRIPT).sha256,
        export_sha256=manifest.file(EXPORT).sha256,
    )


def _report(
    work: Work, data: PreparedData, folders: Mapping[str, str], manifests: Mapping[str, Manifest], result: JobResult
) -> "ReportFiles":
    """What can be said about the job's predictions, beside the store, where earlier runs can be compared."""
    from docml_assets.report.build import build_report  # scipy takes most of a second to load

    staged = result.output_prefix
    return build_report(
        experiment=work.place.experiment,
        run=work.place.number,
        predictions=read_parquet(work.store.get(f"{staged}/{PREDICTIONS}")),
        labels=labels_of(work, data.folder),
        documents=read_parquet(work.store.get(f"{staged}/{DOCUMENTS}")),
        timings=json.loads(work.store.get(f"{staged}/{TIMINGS}")),
        history={name: json.loads(work.store.get(f"{folder}/{HISTORY}")) for name, folder in folders.items()},
        lineage=_lineage(work, data, manifests),
        previous=[found for place in earlier_runs(work) if (found := previous_run(work, place)) is not None],
        settings={**work.settings.frozen_content(), **work.settings.operational()},
        excerpts=excerpts(work),
        group_column=work.settings.split_by,
        groups=_groups(work, data.folder) if work.settings.split_by else None,
    )


def labels_of(work: Work, prepared_folder: str) -> list[str]:
    """The labels in the order of their ids."""
    by_id: dict[str, str] = json.loads(work.store.get(f"{prepared_folder}/{ID2LABEL}"))
    return [label for _, label in sorted(by_id.items(), key=lambda item: int(item[0]))]


def _groups(work: Work, prepared_folder: str) -> dict[str, str | None]:
    table: pa.Table = read_parquet(work.store.get(f"{prepared_folder}/{SPLITS_TABLE}"))
    return dict(zip(table["artifact_guid"].to_pylist(), table["group"].to_pylist(), strict=True))


def previous_run(work: Work, place: RunPlace) -> "PreviousRun | None":
    """An earlier run's predictions, if it has a report of its own (one that it took from another run says nothing new)."""
    from docml_assets.report.earlier_runs import read_run

    manifest = read_manifest(work.store, place.inference)
    return read_run(work.store, place) if manifest is not None and manifest.run == place.number else None


def _lineage(work: Work, data: PreparedData, manifests: Mapping[str, Manifest]) -> "Lineage":
    from docml_assets.report.evidence import JobLine, Lineage

    upstream = [read_manifest(work.store, folder) for folder in (work.place.snapshot, work.place.reconciliation)]
    versions: dict[str, str] = {}
    for manifest in upstream:
        if manifest is not None:
            versions |= {**manifest.inputs, manifest.asset: manifest.data_version}
    versions |= {"encoded_splits": data.data_version, "best_torchscript_model": version(manifests)}
    return Lineage(
        data_versions=versions,
        hashes={f"{name}: {TORCHSCRIPT}": manifest.file(TORCHSCRIPT).sha256 for name, manifest in manifests.items()},
        jobs=tuple(
            JobLine(
                step=record.spec.step,
                name=record.name,
                model=record.spec.model,
                seconds=record.seconds or None,
                cost_usd=record.cost_usd,
            )
            for record in job_records(work.store, work.place)
            if record.status == "Completed"
        ),
    )
