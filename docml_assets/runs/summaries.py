"""What runs came to, read from the store alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from docml_assets.report.schema import Report
from docml_assets.runs.claims import claimed_runs, read_claim
from docml_contract.manifests import Manifest
from docml_contract.names import REPORT_JSON, RunPlace
from resources.jobs.engine.records import JobRecord, job_records
from resources.store import Store
from resources.store.manifests import read_manifest


@dataclass(frozen=True)
class RunSummary:
    """One run: `steps` says done, done (run 1) where reused, 2 of 3, running, failed, or nothing."""

    experiment: str
    number: int
    steps: Mapping[str, str]
    scores: Mapping[str, float]  # model -> macro-F1
    claimed_at: datetime
    seconds: float  # of all its jobs
    jobs: tuple[JobRecord, ...]


def summaries(store: Store, experiment: str) -> list[RunSummary]:
    """The experiment's claimed runs, by number."""
    found = []
    for number in claimed_runs(store, experiment):
        claim = read_claim(store, experiment, number)
        if claim is not None:
            found.append(_summary(store, RunPlace(experiment, number), claim.settings.model_names, claim.created_at))
    return found


def _summary(store: Store, place: RunPlace, models: tuple[str, ...], claimed_at: str) -> RunSummary:
    jobs = tuple(job_records(store, place))
    report = read_manifest(store, place.inference)
    return RunSummary(
        experiment=place.experiment,
        number=place.number,
        steps={
            "reconciliation": _status(place, [read_manifest(store, place.reconciliation)], jobs, ()),
            "preparation": _status(
                place, [read_manifest(store, place.preparation)], jobs, ("preparation", "preparation-merge")
            ),
            "training": _status(place, _models(store, place, models), jobs, ("training", "tuning")),
            "inference": _status(place, [report], jobs, ("inference",)),
        },
        scores=_scores(store, place) if report is not None else {},
        claimed_at=datetime.fromisoformat(claimed_at),
        seconds=sum(job.seconds for job in jobs),
        jobs=jobs,
    )


def _models(store: Store, place: RunPlace, models: tuple[str, ...]) -> list[Manifest | None]:
    trained, tuned = (
        [read_manifest(store, place.trained(name, tuned=flag)) for name in models] for flag in (False, True)
    )
    return max(trained, tuned, key=lambda found: sum(manifest is not None for manifest in found))


def _status(
    place: RunPlace, manifests: list[Manifest | None], jobs: tuple[JobRecord, ...], steps: tuple[str, ...]
) -> str:
    found = [manifest for manifest in manifests if manifest is not None]
    if found and len(found) == len(manifests):
        makers = sorted({manifest.run for manifest in found} - {place.number})
        return f"done (run {makers[-1]})" if makers else "done"
    mine = [job for job in jobs if job.spec.step in steps]
    if any(job.status == "Asked" for job in mine):
        return "running"
    if mine and mine[-1].status != "Completed":
        return "failed" if mine[-1].status in ("Failed", "Refused") else "stopped"
    return f"{len(found)} of {len(manifests)}" if found else ""


def _scores(store: Store, place: RunPlace) -> dict[str, float]:
    key = f"{place.inference}/{REPORT_JSON}"
    report = Report.from_bytes(store.get(key), store.uri(key))
    return {name: model.f1_macro for name, model in report.models.items()}
