"""What runs came to, read from the store alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from docml_assets.report.schema import read_report
from docml_assets.runs.claims import read_claim, read_or_note, run_folders
from docml_contract.manifests import Manifest
from docml_contract.names import RunPlace
from resources.jobs.engine.records import JobRecord, job_records
from resources.store import Store
from resources.store.manifests import read_manifest


@dataclass(frozen=True)
class RunSummary:
    """One run: `steps` says done, done (run 1) where reused, 2 of 3, running, failed, or nothing."""

    experiment: str
    number: int
    steps: Mapping[str, str]
    scores: Mapping[
        str, tuple[float, tuple[float, float]]
    ]  # model -> macro-F1 on its test documents, and the 95 % interval
    claimed_at: datetime | None  # None where the claim cannot be read
    seconds: float  # of all its jobs
    jobs: tuple[JobRecord, ...]
    damage: tuple[str, ...] = ()  # what of it cannot be read


def summaries(store: Store, experiment: str) -> list[RunSummary]:
    """The experiment's runs, by number. What cannot be read is named, and affects its own run only."""
    return [_summary(store, RunPlace(experiment, number)) for number in run_folders(store, experiment)]


def _summary(store: Store, place: RunPlace) -> RunSummary:
    damage: list[str] = []

    def manifest(folder: str) -> Manifest | None:
        return read_or_note(partial(read_manifest, store, folder), damage)

    claim = read_or_note(partial(read_claim, store, place.experiment, place.number), damage)
    if claim is None and not damage:
        damage.append(f"{store.uri(place.claim)} is missing: restore it, or take the next run number")
    settings = read_or_note(lambda: claim.settings, damage) if claim else None
    jobs = tuple(read_or_note(partial(job_records, store, place), damage) or ())
    models = settings.model_names if settings else ()
    trained, tuned = ([manifest(place.trained(name, tuned=flag)) for name in models] for flag in (False, True))
    report = manifest(place.inference)
    return RunSummary(
        experiment=place.experiment,
        number=place.number,
        steps={
            "reconciliation": _status(place, [manifest(place.reconciliation)], jobs, ()),
            "preparation": _status(place, [manifest(place.preparation)], jobs, ("preparation", "preparation-merge")),
            "training": _status(place, max(trained, tuned, key=_count), jobs, ("training", "tuning")),
            "inference": _status(place, [report], jobs, ("inference",)),
        },
        scores=(read_or_note(partial(_scores, store, place), damage) or {}) if report is not None else {},
        claimed_at=datetime.fromisoformat(claim.created_at) if claim else None,
        seconds=sum(job.seconds for job in jobs),
        jobs=jobs,
        damage=tuple(damage),
    )


def _count(manifests: list[Manifest | None]) -> int:
    return sum(manifest is not None for manifest in manifests)


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


def _scores(store: Store, place: RunPlace) -> dict[str, tuple[float, tuple[float, float]]]:
    return {name: (model.f1_macro, model.f1_macro_ci95) for name, model in read_report(store, place).models.items()}
