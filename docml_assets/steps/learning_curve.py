"""LEARNING_CURVE: the first model, trained on parts of the train split as well, so that its score is known by number of documents.

Each part is a training of its own, whose job predicts the test split. What it answered is kept,
`training/<model>/part-<index>-of-<divisor>/`; the model is not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from docml_assets.steps.preparation import read_prepared
from docml_assets.steps.specs import PlannedTraining
from docml_assets.steps.work import Work
from docml_contract.jobs import CURVE_PARTS, FEWEST_OF_PART, TrainPart
from docml_contract.manifests import JobOutput, Manifest, cache_key
from docml_contract.names import BEST_MODEL, INFERENCE, OUTPUT, SPLIT_METADATA, RunPlace
from resources.jobs.interface import JobResult
from resources.store.manifests import read_manifest


@dataclass(frozen=True)
class CurveParts:
    """What the first model answered after training on parts: part -> the folder with its answers, and the folder's manifest."""

    model: str
    documents: int  # of the train split
    folders: Mapping[TrainPart, str]
    manifests: Mapping[TrainPart, Manifest]


def plan_parts(work: Work, place: RunPlace | None = None) -> list[PlannedTraining]:
    """The trainings on parts that the run asks for; [] without LEARNING_CURVE. place: of another run, whose folders are meant.

    A part is left out where it would have a handful of documents, or not certainly two labels.
    """
    if not work.learning_curve:
        return []
    model, counts = work.settings.model_names[0], _train_counts(work)
    return [
        PlannedTraining(model, (place or work.place).part(model, part.divisor, part.index), part=part)
        for part in CURVE_PARTS
        if sum(counts.values()) // part.divisor >= FEWEST_OF_PART
        and sum(count >= part.divisor for count in counts.values()) >= 2
    ]


def missing_parts(work: Work) -> list[PlannedTraining]:
    """Those that have not finished."""
    return [training for training in plan_parts(work) if read_manifest(work.store, training.folder) is None]


def publish_part(
    work: Work, training: PlannedTraining, result: JobResult, spec_hash: str, inputs: Mapping[str, str]
) -> None:
    """Keep what the job of a part answered. IncompleteArtifact where it answered nothing."""
    folder = f"{result.output_prefix}/{INFERENCE}"
    key = f"{folder}/{OUTPUT}"
    answers = JobOutput.from_bytes(work.store.get(key), work.store.uri(key))
    work.publish(
        BEST_MODEL,
        training.folder,
        {},
        copied={f"{folder}/{entry.path}": entry for entry in answers.files},
        cache_key=cache_key(BEST_MODEL, spec=spec_hash),
        data_version=answers.data_version,
        inputs=inputs,
    )


def read_parts(work: Work) -> CurveParts | None:
    """The parts that have finished; None without LEARNING_CURVE."""
    planned = plan_parts(work)
    if not planned:
        return None
    found = {training: read_manifest(work.store, training.folder) for training in planned}
    finished = {training: manifest for training, manifest in found.items() if manifest is not None}
    return CurveParts(
        planned[0].model,
        sum(_train_counts(work).values()),
        {training.part: training.folder for training in finished if training.part},
        {training.part: manifest for training, manifest in finished.items() if training.part},
    )


def _train_counts(work: Work) -> dict[str, int]:
    """Train documents by label."""
    said: dict[str, Any] = json.loads(work.store.get(f"{read_prepared(work).folder}/{SPLIT_METADATA}"))
    return dict(said["labels"]["train"])
