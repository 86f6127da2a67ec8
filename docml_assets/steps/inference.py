"""inference_report: every model of the run on the test split, and what can be said about it."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from docml_assets.report.schema import read_report
from docml_assets.runs.claims import describe_trigger, read_claim
from docml_assets.steps.answers import SplitAnswers, find_answers, find_part_answers, find_seeded_answers, inference_job
from docml_assets.steps.deployment import make_deployments
from docml_assets.steps.past_runs import read_past_runs
from docml_assets.steps.preparation import read_labels, read_prepared, read_prepared_manifest
from docml_assets.steps.reconciliation import read_units
from docml_assets.steps.reuse import find_finished, read_required, reused_outcome, take_earlier
from docml_assets.steps.training import SeedModels, models_version, read_models, read_seeds
from docml_assets.steps.units import combine_answers, with_units
from docml_assets.steps.work import NotReady, Outcome, Work
from docml_assets.tables import read_parquet
from docml_contract.file_names import matching
from docml_contract.manifests import Manifest, PreparedData, cache_key
from docml_contract.names import (
    BASELINE_TABLE,
    BEST_MODEL,
    ENCODED_SPLITS,
    HISTORY,
    INFERENCE,
    INFERENCE_REPORT,
    PREDICTIONS,
    RECONCILED_DATA,
    RECONCILED_TABLE,
    REPORT_HTML,
    REPORT_JSON,
    SPLIT_METADATA,
    SPLITS_TABLE,
    TORCHSCRIPT,
    UNIT_PREDICTIONS,
    RunPlace,
)
from docml_contract.units import artifact_of, files_of_unit, split_guid
from resources.errors import ResourceError
from resources.jobs.engine.records import job_records
from resources.store.manifests import read_manifest, read_recorded

if TYPE_CHECKING:
    from docml_assets.report.build import ReportFiles, UnitAnswers
    from docml_assets.report.evidence import Lineage

EXCERPT_CHARACTERS = 600  # whoever shows fewer cuts at a word
LARGEST_EXCERPTED = 32 << 20  # bytes of a file in which text is looked for
SHORTEST_TEXT = 20  # characters of a JSON string that counts as text rather than as a name or an id


def run_inference(work: Work) -> Outcome | None:
    """Predict and report. None where the step is not performed and nothing fits."""
    folder = work.place.inference
    done = find_finished(work, folder)
    if done is not None:
        return done
    if not work.performs(INFERENCE):
        return _skip(work)
    data = read_prepared(work)
    folders, manifests = read_models(work)
    inputs = {ENCODED_SPLITS: data.data_version, BEST_MODEL: models_version(manifests)}
    spec, seeds = inference_job(work, folders, manifests, inputs), read_seeds(work)
    if seeds:
        answers, by_seed = find_seeded_answers(work, data, seeds, inputs)
    else:
        answers, by_seed = find_answers(work, data, manifests, spec), {}
    report = _report(work, data, (folders, manifests), answers, (seeds, by_seed))
    make_deployments(work, report.report.policies)
    combine = report.report.units.combine if report.report.units else None
    manifest = work.publish(
        INFERENCE_REPORT,
        folder,
        {
            REPORT_JSON: report.report_json,
            REPORT_HTML: report.html,
            PREDICTIONS: report.predictions_parquet,
            **({UNIT_PREDICTIONS: report.unit_predictions_parquet} if report.unit_predictions_parquet else {}),
            **{f"plots/{name}": png for name, png in report.plots.items()},
        },
        cache_key=cache_key(INFERENCE_REPORT, spec=spec.spec_hash, **({"combine": combine} if combine else {})),
        data_version=report.data_version,
        inputs=inputs,
    )
    return Outcome.of(work, manifest, folder, how="made", why=report.summary[0], jobs=answers.jobs)


def _skip(work: Work) -> Outcome | None:
    """Take the newest earlier run's report on the same models and data. Nothing comes after it, so that none is no error."""
    own = work.place.inference
    try:
        inputs = {
            ENCODED_SPLITS: read_prepared(work).data_version,
            BEST_MODEL: models_version(read_models(work)[1]),
        }
    except NotReady:
        return None
    target = work.settings.auto_accept_precision

    def fits(found: Mapping[str, Manifest]) -> bool:
        if found[""].inputs != inputs:
            return False
        report = read_report(work.store, RunPlace(work.place.experiment, found[""].run))
        if report.units is not None and report.units.combine != (work.use_case and work.use_case.combining_digest):
            return False
        policies = report.policies
        return {policy.target for policy in policies.values()} == ({target} if target is not None else set())

    taken = take_earlier(work, lambda place: {"": place.inference}, {"": own}, fits)
    return reused_outcome(INFERENCE_REPORT, taken, {"": own}, taken[""].data_version) if taken is not None else None


def _report(
    work: Work,
    data: PreparedData,
    models: tuple[Mapping[str, str], Mapping[str, Manifest]],
    answers: SplitAnswers,
    seeded: tuple[Mapping[str, SeedModels], Mapping[int, SplitAnswers]],
) -> "ReportFiles":
    """What can be said about the models' answers, beside the store, where earlier runs can be compared.

    models: their folders and manifests. seeded: with SEEDS, every model's trainings and their answers by seed.
    """
    from docml_assets.report.build import build_report  # scipy takes most of a second to load
    from docml_assets.report.learning_curve import CurveAnswers
    from docml_assets.report.seeds import SeedAnswers

    folders, manifests = models
    seeds, by_seed = seeded
    past = read_past_runs(work)
    baseline = _baseline(work, data.folder)
    groups = _groups(work, data.folder) if work.settings.split_by else None
    documents, parts = find_part_answers(work)
    units = None
    if read_units(work) is not None:
        units = _unit_answers(work, answers, baseline, groups)
        combined = combine_answers(work, answers, baseline)
        answers, baseline = combined.answers, combined.baseline
        by_seed = {seed: combine_answers(work, found, None).answers for seed, found in by_seed.items()}
        parts = [(size, combine_answers(work, found, None).answers) for size, found in parts]
    return build_report(
        experiment=work.place.experiment,
        run=work.place.number,
        predictions=answers.predictions,
        labels=read_labels(work),
        documents=answers.documents,
        timings=answers.timings,
        history={name: json.loads(work.store.get(f"{folder}/{HISTORY}")) for name, folder in folders.items()},
        lineage=_lineage(work, data, manifests),
        previous=past.runs,
        changed=past.changed,
        settings={
            **work.settings.as_written(),
            **({"use case": {"code": work.use_case.describe()}} if work.use_case else {}),
        },
        excerpts=read_excerpts(work),
        baseline=baseline,
        prepared=json.loads(work.store.get(f"{data.folder}/{SPLIT_METADATA}")).get("baseline"),
        group_column=work.settings.split_by,
        groups=groups,
        target=work.settings.auto_accept_precision,
        validation=answers.validation,
        seeds=SeedAnswers(
            predictions={seed: found.predictions for seed, found in by_seed.items()},
            valid_f1={name: found.valid_f1 for name, found in seeds.items()},
            chosen={name: found.chosen for name, found in seeds.items()},
        )
        if seeds
        else None,
        units=units,
        curve=CurveAnswers(documents, [(size, found.predictions) for size, found in parts]) if parts else None,
    )


def _unit_answers(
    work: Work, answers: SplitAnswers, baseline: pa.Table | None, groups: Mapping[str, str | None] | None
) -> "UnitAnswers":
    """What the report says of units: a unit depends on the others of its artifact, and of its SPLIT_BY group."""
    from docml_assets.report.build import UnitAnswers
    from docml_assets.report.predictions import with_baseline, with_probabilities

    assert work.use_case is not None
    table = with_probabilities(answers.predictions, answers.documents)
    table = table if baseline is None else with_baseline(table, baseline)
    group_of = {}
    for guid in table["artifact_guid"].to_pylist():
        group = (groups or {}).get(artifact_of(guid))
        group_of[guid] = f"artifact {artifact_of(guid)}" if group is None else f"group {group}"
    return UnitAnswers(table, with_units(table), group_of, work.use_case.combining_digest)


def _baseline(work: Work, prepared_folder: str) -> pa.Table | None:
    """baseline.parquet; None where the data have none, or the run wants none."""
    manifest = read_manifest(work.store, prepared_folder)
    if manifest is None or not work.settings.baseline or BASELINE_TABLE not in {file.path for file in manifest.files}:
        return None
    return read_parquet(read_recorded(work.store, prepared_folder, manifest.file(BASELINE_TABLE)))


def _groups(work: Work, prepared_folder: str) -> dict[str, str | None]:
    entry = read_prepared_manifest(work).file(SPLITS_TABLE)
    table: pa.Table = read_parquet(read_recorded(work.store, prepared_folder, entry))
    return dict(zip(table["artifact_guid"].to_pylist(), table["group"].to_pylist(), strict=True))


def _lineage(work: Work, data: PreparedData, manifests: Mapping[str, Manifest]) -> "Lineage":
    from docml_assets.report.evidence import JobLine, Lineage

    upstream = [read_manifest(work.store, folder) for folder in (work.place.snapshot, work.place.reconciliation)]
    versions: dict[str, str] = {}
    for manifest in upstream:
        if manifest is not None:
            versions |= {**manifest.inputs, manifest.asset: manifest.data_version}
    versions |= {ENCODED_SPLITS: data.data_version, BEST_MODEL: models_version(manifests)}
    claim = read_claim(work.store, work.place.experiment, work.place.number)
    return Lineage(
        claimed=(claim.created_at, describe_trigger(claim.trigger)) if claim is not None else None,
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


def read_excerpts(work: Work) -> Callable[[str], str]:
    """GUID -> the beginning of the first of its files that holds text, MODEL_INPUT_FILES before others; empty where none does."""
    reconciled = read_required(work, work.place.reconciliation, RECONCILED_DATA)
    table = read_parquet(read_recorded(work.store, work.place.reconciliation, reconciled.file(RECONCILED_TABLE)))
    keys: dict[str, dict[str, str]] = {}
    for row in table.select(["artifact_guid", "file", "key"]).to_pylist():
        keys.setdefault(row["artifact_guid"], {})[row["file"]] = row["key"]

    def excerpt(guid: str) -> str:
        artifact, unit = split_guid(guid)
        own = keys.get(artifact, {})
        if unit is not None:
            own = {name: own[name] for name in files_of_unit(own, work.settings.model_input_files, unit)}
        read = (name for entry in work.settings.model_input_files for name in matching(own, entry))
        for name in dict.fromkeys([*read, *sorted(own)]):
            try:
                stored = work.store.head(own[name])
                text = text_of(work.store.get(own[name])) if stored and stored.size <= LARGEST_EXCERPTED else ""
            except ResourceError:
                continue
            if text:
                return text[:EXCERPT_CHARACTERS]
        return ""

    return excerpt


def text_of(content: bytes) -> str:
    """The text of a file: its long strings if it is JSON, itself if it is text, nothing if it is neither."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return ""
    try:
        parts = _strings(json.loads(text))
    except (ValueError, RecursionError):  # no JSON, or one that is made to be read by nobody
        return " ".join(text.split())
    return " ".join(" ".join(part for part in parts if len(part) >= SHORTEST_TEXT and " " in part).split())


def _strings(value: Any) -> Iterator[str]:
    """The strings of a JSON value, in its order; however deep it nests."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict | list):
            waiting += reversed([*item.values()] if isinstance(item, dict) else item)
