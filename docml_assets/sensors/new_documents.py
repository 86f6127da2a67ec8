"""new_documents_sensor: classifies what is new in production with the champion, where its run has a PREDICT_QUERY.

A tick asks the query and lists production's files. Where no finished table has just these documents in their versions, and the tick before
found the same, it launches `classified_documents` of the champion's run: one Dagster run for each set of documents.
"""

from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from docml_assets.deployment import work_on
from docml_assets.errors import DocmlError
from docml_assets.partitions import partition_key, registration_requests
from docml_assets.sensors.launching import TICK_PATIENCE_SECONDS, SensorCursor, experiment_folders, in_turn
from docml_assets.steps.deployment import read_deployment
from docml_assets.steps.documents import NoRows, documents_of
from docml_assets.steps.prediction import prediction_id
from docml_assets.steps.snapshot import existing_claim
from docml_contract.base import Document
from docml_contract.names import CLASSIFIED_DOCUMENTS, RunPlace
from resources.store.manifests import read_manifest

if TYPE_CHECKING:
    from docml_assets.runs.champion import Promotion

NAME = "new_documents_sensor"
JOB = "classify_documents"


class Sighting(Document):
    """What the sensor saw of one experiment."""

    identity: str | None = Field(None, description="of the documents at the last tick")
    reported: str | None = Field(None, description="what was said last; the same is not said again")


class NewDocumentsCursor(SensorCursor):
    """What the sensor saw of all of them."""

    experiments: dict[str, Sighting] = Field(default_factory=dict)


@dg.sensor(
    name=NAME,
    job_name=JOB,
    description="Classifies documents that are new or have changed with the champion, where its run has a PREDICT_QUERY, once they have stood "
    "for two ticks. Stopped until switched on: jobs can cost money.",
    default_status=dg.DefaultSensorStatus.STOPPED,
    minimum_interval_seconds=300,
)
def new_documents_sensor(context: dg.SensorEvaluationContext, deployment: dg.ResourceParam[Any]) -> dg.SensorResult:
    """Ask for a run for each experiment whose champion has documents that are new, or have changed, and stood still for a tick."""
    cursor = NewDocumentsCursor.read(context.cursor)
    folders = experiment_folders(deployment.experiments)
    seen = {name: sighting for name, sighting in cursor.experiments.items() if name in folders}
    requests: list[dg.RunRequest] = []
    places: list[RunPlace] = []
    said: list[str] = []
    last = cursor.after
    for name in in_turn(folders, cursor.after):
        last, before = name, seen.get(name, Sighting())
        try:
            champion = _champion(deployment, name)
            identity = _unclassified(deployment, name, champion) if champion else None
        except Exception as error:  # whatever one experiment meets must not stop the others
            report = f"{name}: {error}"
            if report != before.reported:
                context.log.warning(report)
                said.append(report)
            seen[name] = Sighting(reported=report)
            continue
        seen[name] = Sighting(identity=identity)
        if champion is not None and identity is not None and identity == before.identity:
            places.append(RunPlace(name, champion.run))
            requests.append(_request(name, champion, identity))
            said.append(f"{name}: new documents are classified with run {champion.run}, {champion.model}")
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else "\n".join(said) or f"{len(folders)} experiments; no new documents",
        dynamic_partitions_requests=registration_requests(places),
        cursor=cursor.model_copy(update={"experiments": seen, "after": last}).model_dump_json(),
    )


def _champion(deployment: Any, experiment: str) -> "Promotion | None":
    from docml_assets.runs.champion import read_history, standing  # scipy takes most of a second to load

    found = standing(read_history(deployment.store.with_patience(TICK_PATIENCE_SECONDS), experiment))
    return found[-1] if found else None


def _unclassified(deployment: Any, experiment: str, champion: "Promotion") -> str | None:
    """The identity of the documents of the champion's PREDICT_QUERY; None where all of them are classified, or there is none."""
    store = deployment.store.with_patience(TICK_PATIENCE_SECONDS)
    work = work_on(deployment, existing_claim(store, RunPlace(experiment, champion.run)), NAME, Silence())
    if work.settings.predict_query is None:
        return None
    try:
        documents = documents_of(work, work.settings.predict_query)
    except NoRows:
        return None
    identity = prediction_id(read_deployment(work, champion.model), documents)
    return identity if read_manifest(store, work.place.prediction(identity)) is None else None


def _request(experiment: str, champion: "Promotion", identity: str) -> dg.RunRequest:
    config = {"query": None, "model": champion.model}
    return dg.RunRequest(
        run_key=f"{experiment}|{champion.run}|{identity}",
        partition_key=partition_key(experiment, champion.run),
        run_config={"ops": {CLASSIFIED_DOCUMENTS: {"config": config}}},
    )


class Silence:
    """A reporter for a tick, which says what it has to say itself."""

    def __init__(self) -> None:
        self.links: dict[str, str] = {}

    def say(self, text: str) -> None:
        """Nothing."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Nothing."""

    def listener(self, model: str | None) -> Any:
        """DocmlError: a sensor runs no job."""
        raise DocmlError("a sensor runs no job")
