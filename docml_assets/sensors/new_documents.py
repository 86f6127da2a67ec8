"""new_documents_sensor: classifies what is new in production with the champion, where its run has a PREDICT_QUERY.

A tick asks the query and lists production's files. Where no finished table has just these documents in their versions, and the tick before
found the same, it launches `classified_documents` of the champion's run: one Dagster run for each set of documents, and where that fails
another one, ATTEMPTS in all.
"""

from dataclasses import dataclass
from typing import Any

import dagster as dg
from pydantic import Field

from docml_assets.deployment import work_on
from docml_assets.errors import DocmlError
from docml_assets.experiment.folder import experiment_folders
from docml_assets.experiment.settings.settings import Settings
from docml_assets.partitions import DOCUMENTS_TAG, EXPERIMENT, operation_tag, partition_key, registration_requests
from docml_assets.sensors.launching import (
    TICK_PATIENCE_SECONDS,
    SensorCursor,
    State,
    describe_states,
    in_turn,
    minute,
)
from docml_assets.steps.deployment import read_deployment
from docml_assets.steps.documents import NoRows, documents_of
from docml_assets.steps.prediction import prediction_id
from docml_assets.steps.snapshot import existing_claim
from docml_contract.base import Document, digest, short
from docml_contract.names import CLASSIFIED_DOCUMENTS, RunPlace
from resources.store.manifests import read_manifest

NAME = "new_documents_sensor"
JOB = "classify_documents"
ATTEMPTS = 3  # to classify one set of documents


class Sighting(Document):
    """What the sensor saw of one experiment."""

    identity: str | None = Field(None, description="of the documents at the last tick")
    reported: str | None = Field(None, description="digest of what went wrong at the last tick")
    since: str | None = Field(None, description="since when something has gone wrong")


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
    found: list[tuple[Unclassified, int]] = []
    states: dict[str, tuple[State, str]] = {}
    last = cursor.after
    for name in in_turn(folders, cursor.after):
        last, before = name, seen.get(name, Sighting())
        identity = None
        try:
            documents = _find_unclassified(deployment, name)
            identity = documents.identity if documents else None
            attempt = _next_attempt(context.instance, documents) if documents else None
            states[name] = describe_documents(documents, attempt, settled=identity == before.identity)
            if documents is not None and states[name][0] == "start":
                found.append((documents, attempt or 1))
            seen[name] = Sighting(identity=identity)
        except Exception as error:  # whatever one experiment meets must not stop the others
            reported, since = short(digest(str(error))), before.since or minute()
            states[name] = ("broken", f"not looked at, since {since}: {error}")
            if reported != before.reported:
                context.log.warning(f"{name}: {error}")
            seen[name] = Sighting(identity=identity, reported=reported, since=since)
    said = describe_states(states, folders, deployment.experiments)
    if found:
        context.log.info(said)
    return dg.SensorResult(
        run_requests=[documents.request(attempt) for documents, attempt in found],
        skip_reason=None if found else said,
        dynamic_partitions_requests=registration_requests(documents.place for documents, _ in found),
        cursor=cursor.model_copy(update={"experiments": seen, "after": last}).write(),
    )


def describe_documents(found: "Unclassified | None", attempt: int | None, *, settled: bool) -> tuple[State, str]:
    """How an experiment stands at a tick."""
    if found is None:
        return "unchanged", ""
    if attempt is None:
        return "waiting", "its new documents are being classified, or somebody canceled that"
    if not settled:
        return "waiting", "new documents; they are classified once they have stood for two ticks"
    return "start", f"new documents are classified with run {found.place.number}, {found.model}"


@dataclass(frozen=True)
class Unclassified:
    """A set of documents that no finished table has, and the champion that is to classify them."""

    place: RunPlace
    model: str
    identity: str
    settings: Settings

    def request(self, attempt: int) -> dg.RunRequest:
        """The run as Dagster is asked for it; the same attempt is never asked for twice."""
        config = {"query": None, "model": self.model}
        again = f"|{attempt}" if attempt > 1 else ""
        return dg.RunRequest(
            run_key=f"{self.place.experiment}|{self.place.number}|{self.identity}{again}",
            partition_key=partition_key(self.place.experiment, self.place.number),
            run_config={"ops": {CLASSIFIED_DOCUMENTS: {"config": config}}},
            tags={DOCUMENTS_TAG: self.identity, EXPERIMENT: self.place.experiment, **operation_tag(self.settings)},
        )


def _find_unclassified(deployment: Any, experiment: str) -> Unclassified | None:
    """The documents of the champion's PREDICT_QUERY; None where all of them are classified, or there is no champion or no query."""
    from docml_assets.runs.champion import read_history, standing  # scipy takes most of a second to load

    store = deployment.store.with_patience(TICK_PATIENCE_SECONDS)
    champions = standing(read_history(store, experiment))
    if not champions:
        return None
    champion = champions[-1]
    work = work_on(deployment, existing_claim(store, RunPlace(experiment, champion.run)), NAME, Silence())
    if work.settings.predict_query is None:
        return None
    try:
        documents = documents_of(work, work.settings.predict_query)
    except NoRows:
        return None
    identity = prediction_id(read_deployment(work, champion.model), documents)
    if read_manifest(store, work.place.prediction(identity)) is not None:
        return None
    return Unclassified(work.place, champion.model, identity, work.settings)


def _next_attempt(instance: dg.DagsterInstance, found: Unclassified) -> int | None:
    """1, or more after failed runs; None while one is under way, or where somebody canceled it. DocmlError after too many failures."""
    statuses = [run.status for run in instance.get_runs(dg.RunsFilter(tags={DOCUMENTS_TAG: found.identity}))]
    failures = statuses.count(dg.DagsterRunStatus.FAILURE)
    if failures < len(statuses):
        return None
    if failures >= ATTEMPTS:
        raise DocmlError(
            f"classifying the new documents has failed {failures} times and is given up: look in Dagster's run list "
            "for the reason, then materialize "
            f"{CLASSIFIED_DOCUMENTS} of run {found.place.number}; other documents are classified as before"
        )
    return failures + 1


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
