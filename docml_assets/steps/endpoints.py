"""An endpoint of a model: what may be deployed, what is asked for, and whether it answers as the report measured.

EndpointGate     what may not be deployed, below StepError
WrongAnswers     an endpoint that answers otherwise than the report
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from docml_assets.report.schema import Report, read_report
from docml_assets.steps.deployment import manifest_sha256, read_deployment
from docml_assets.steps.specs import step_compute
from docml_assets.steps.work import StepError, Work
from docml_assets.tables import read_parquet
from docml_contract.base import digest
from docml_contract.manifests import Manifest
from docml_contract.names import (
    BEST_MODEL,
    DEPLOYED_ENDPOINT,
    EXPORT,
    INFERENCE_REPORT,
    PREDICTION_SUFFIX,
    PREDICTIONS,
    PROBABILITY_SUFFIX,
    RECONCILED_TABLE,
    UNIT_PREDICTIONS,
)
from docml_contract.units import units_in
from resources.endpoints.endpoints import Endpoints
from resources.endpoints.interface import Endpoint, EndpointSpec, Mode, check_alias, endpoint_name
from resources.store.manifests import check_finished, read_finished, read_manifest, read_recorded

COMPARED_DOCUMENTS = 50
# Of a probability. What an export in bfloat16 says of a document depends a little on the documents that share its batch.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02}
MAX_REQUEST_BYTES = 5_000_000  # an endpoint takes 6,291,456
MAX_REQUEST_DOCUMENTS = 16


class EndpointGate(StepError):
    """The model may not be deployed."""


class WrongAnswers(StepError):
    """The endpoint answers otherwise than the report."""


@dataclass(frozen=True)
class EndpointRequest:
    """What somebody asked to be deployed."""

    model: str
    mode: Mode = "realtime"
    alias: str | None = None
    expires_after: timedelta | None = None
    by: str = "unknown"


@dataclass(frozen=True)
class DeployedModel:
    """What came of it: the endpoint of the run, and the alias if there is one."""

    endpoint: Endpoint
    alias: Endpoint | None
    deployment: Manifest
    data_version: str
    inputs: Mapping[str, str]


@dataclass(frozen=True)
class TestDocument:
    """A document of the test split, as it was sent in production, and what the report says about it."""

    guid: str
    files: Mapping[str, bytes]
    label: str
    probability: float

    @property
    def size(self) -> int:
        """Bytes that it takes in a request."""
        return sum(len(content) * 4 // 3 + 100 for content in self.files.values())


def plan_endpoint(work: Work, request: EndpointRequest) -> tuple[EndpointSpec, EndpointSpec | None]:
    """The endpoint of the run and, where an alias is asked for, the alias; the deployment folder is verified. EndpointGate, EndpointRefused."""
    model = request.model
    _check_gate(work, model)
    read_deployment(work, model)
    spec = endpoint_spec(work, model, request.mode)
    if request.alias is None:
        return spec, None
    return spec, spec.model_copy(update={"name": check_alias(request.alias), "alias": True})


def endpoint_spec(work: Work, model: str, mode: Mode = "realtime") -> EndpointSpec:
    """What answers with the model, and on what."""
    compute = step_compute(work, "inference", hosts=1)
    return EndpointSpec(
        name=endpoint_name(work.place.number, work.place.experiment, model),
        experiment=work.place.experiment,
        run=work.place.number,
        model=model,
        mode=mode,
        folder=work.place.deployment(model),
        manifest_sha256=manifest_sha256(work, model),
        image=compute.image,
        instance_type=None if work.kind == "local" else compute.instance_type,
    )


def deploy_model(work: Work, endpoints: Endpoints, request: EndpointRequest) -> DeployedModel:
    """Bring the endpoint up, and move the alias once its answers are the report's. EndpointGate, WrongAnswers, EndpointError."""
    spec, alias = plan_endpoint(work, request)
    documents = list(read_test_documents(work, request.model))
    if not documents:
        raise EndpointGate(
            f"{work.describe()}: no test document fits a request of {MAX_REQUEST_BYTES:,} bytes, so that nothing shows whether an "
            "endpoint answers as the report measured; expected at least one: use docml predict for such documents"
        )

    export = json.loads(work.store.get(f"{spec.folder}/{EXPORT}"))

    def check(invoke: Callable[[bytes], bytes]) -> int:
        work.reporter.say(f"comparing its answers on {len(documents)} test documents with the report")
        return compare_answers(documents, invoke, export.get("arithmetic", "float32"))

    def bring_up(wanted: EndpointSpec, expires_after: timedelta | None) -> Endpoint:
        return endpoints.deploy(wanted, by=request.by, check=check, say=work.reporter.say, expires_after=expires_after)

    endpoint = bring_up(spec, request.expires_after)
    moved = bring_up(alias, request.expires_after) if alias is not None else None
    deployment = read_deployment(work, request.model)
    report = read_manifest(work.store, work.place.inference)
    assert report is not None
    return DeployedModel(
        endpoint,
        moved,
        deployment,
        data_version=digest([DEPLOYED_ENDPOINT, spec.name, spec.mode, deployment.data_version, request.alias]),
        inputs={BEST_MODEL: deployment.inputs[BEST_MODEL], INFERENCE_REPORT: report.data_version},
    )


def _check_gate(work: Work, model: str) -> None:
    """What may be deployed: a model with a finished report that adds up, and that is not shown to be worse where that blocks."""
    report = read_report(work.store, work.place)
    manifest = read_manifest(work.store, work.place.inference)
    assert manifest is not None
    check_finished(work.store, manifest, work.place.inference)
    if model not in report.models:
        raise EndpointGate(f"{work.describe()}: its report knows no model {model!r}, but {', '.join(report.models)}")
    if work.settings.worse_than_previous == "block" and (better := find_better(report, model)):
        raise EndpointGate(
            f"{work.describe()}: {model} is shown to be worse than {better}, and WORSE_THAN_PREVIOUS is block: deploy another model or run"
        )


def find_better(report: Report, model: str) -> str | None:
    """The model of the previous run that is shown to be better than this one, on the test documents of both."""
    pairs = report.past.comparisons[0].pairs if report.past.comparisons else ()
    return next((pair.b for pair in pairs if pair.a == model and pair.verdict == pair.b), None)


def read_test_documents(work: Work, model: str) -> Iterator[TestDocument]:
    """Test documents of the run, at most COMPARED_DOCUMENTS, with the files that production brought.

    Left out are those too large to be sent, and those of whose units the report has only some: an endpoint reads them all.
    """
    predictions = read_parquet(read_finished(work.store, work.place.inference, PREDICTIONS))
    columns = {"guid": "artifact_guid", "label": model + PREDICTION_SUFFIX, "probability": model + PROBABILITY_SUFFIX}
    rows = predictions.select(list(columns.values())).rename_columns(list(columns)).to_pylist()
    reconciled = read_parquet(read_finished(work.store, work.place.reconciliation, RECONCILED_TABLE))
    keys: dict[str, dict[str, str]] = {}
    named: dict[str, list[str]] = {}
    for row in reconciled.select(["artifact_guid", "file", "key", "origin"]).to_pylist():
        named.setdefault(row["artifact_guid"], []).append(row["file"])
        if row["origin"] == "prod":
            keys.setdefault(row["artifact_guid"], {})[row["file"]] = row["key"]
    units = _reported_units(work)
    if units is not None:
        entries = work.settings.model_input_files
        rows = [row for row in rows if units[row["guid"]] == set(units_in(named[row["guid"]], entries))]
    found = 0
    for row in sorted(rows, key=lambda row: str(row["guid"])):
        files = {name: work.store.get(key) for name, key in sorted(keys[row["guid"]].items())}
        document = TestDocument(files=files, **row)
        if document.size <= MAX_REQUEST_BYTES:
            yield document
            found += 1
        if found == COMPARED_DOCUMENTS:
            return


def _reported_units(work: Work) -> dict[str, set[str]] | None:
    """By test document, the units whose answers the report combined; None where there are none."""
    manifest = read_manifest(work.store, work.place.inference)
    if manifest is None or UNIT_PREDICTIONS not in {entry.path for entry in manifest.files}:
        return None
    table = read_parquet(read_recorded(work.store, work.place.inference, manifest.file(UNIT_PREDICTIONS)))
    found: dict[str, set[str]] = {}
    for guid, unit in zip(table["artifact_guid"].to_pylist(), table["unit"].to_pylist(), strict=True):
        found.setdefault(guid, set()).add(unit)
    return found


def compare_answers(
    documents: list[TestDocument], invoke: Callable[[bytes], bytes], arithmetic: str = "float32"
) -> int:
    """Ask all documents and compare; how many there were. WrongAnswers names the first that differs."""
    for batch in _batches(documents):
        answers = json.loads(invoke(json.dumps([_content(document) for document in batch]).encode()))
        if not isinstance(answers, list) or len(answers) != len(batch):
            raise WrongAnswers(f"the endpoint did not give {len(batch)} answers to {len(batch)} documents")
        for document, answer in zip(batch, answers, strict=True):
            _compare(document, answer, TOLERANCE[arithmetic], is_rounded=arithmetic != "float32")
    return len(documents)


def _compare(document: TestDocument, answer: Mapping[str, Any], tolerance: float, *, is_rounded: bool) -> None:
    """WrongAnswers, unless label and probability are the report's. Of rounded answers two labels may be nearly equal: then the report's counts."""
    label, probability = answer.get("label"), answer.get("probability")
    if is_rounded and label != document.label:
        same = dict(answer.get("probabilities") or {}).get(document.label)
        if _is_near(same, document.probability, tolerance) and _is_near(same, probability, tolerance):
            return
    if label != document.label:
        raise WrongAnswers(
            f"test document {document.guid}: the endpoint answers {label!r}, the report has {document.label!r}: it "
            "does not go into service, and is taken down; look at its log"
        )
    if not _is_near(probability, document.probability, tolerance):
        raise WrongAnswers(
            f"test document {document.guid}: the endpoint answers {label!r} with {probability}, the report has {document.probability}; "
            f"expected at most {tolerance:g} between them: it does not go into service, and is taken down"
        )


def _is_near(found: object, expected: object, tolerance: float) -> bool:
    numbers = isinstance(found, int | float) and isinstance(expected, int | float)
    return numbers and abs(found - expected) <= tolerance  # type: ignore[operator]


def _batches(documents: list[TestDocument]) -> Iterator[list[TestDocument]]:
    batch: list[TestDocument] = []
    for document in documents:
        full = len(batch) == MAX_REQUEST_DOCUMENTS
        if batch and (full or sum(each.size for each in batch) + document.size > MAX_REQUEST_BYTES):
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch


def _content(document: TestDocument) -> dict[str, Any]:
    files = {name: {"base64": base64.b64encode(content).decode()} for name, content in document.files.items()}
    return {"artifact_guid": document.guid, "files": files}


def idle_cost(endpoint: Endpoint) -> str:
    """What it costs while nobody asks, for people."""
    usd, spec = endpoint.usd_an_hour, endpoint.record.spec
    if usd is None:
        return "unknown: DOCML_PRICES names no price of " + (spec.instance_type or "it")
    if usd == 0:
        return "0 USD an hour" + (" once it has scaled to zero" if spec.mode == "async" else "")
    return f"{usd:.2f} USD an hour, {usd * 24 * 30:.0f} USD a month"


def state_word(
    endpoint: Endpoint,
) -> Literal["up", "asked", "leaving", "elsewhere", "failed", "starting", "other model", "gone"]:
    """How an endpoint stands, for people."""
    if not endpoint.is_here:
        return "elsewhere"
    if endpoint.is_up:
        return "up"
    if endpoint.record.status != "up":
        return endpoint.record.status
    state = endpoint.state
    if state is None:
        return "gone"
    words: dict[str, Literal["other model", "failed", "starting", "leaving"]] = {
        "InService": "other model",
        "Failed": "failed",
        "Creating": "starting",
        "Deleting": "leaving",
    }
    return words[state.status]
