"""What the run's models answer on the test split: left by the trainings' jobs where these predicted it, else by a job of its own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from docml_assets.steps import specs
from docml_assets.steps.learning_curve import read_parts
from docml_assets.steps.preparation import recorded_data
from docml_assets.steps.training import SeedModels
from docml_assets.steps.work import Work
from docml_assets.tables import read_parquet
from docml_contract.base import IncompleteArtifact, UnreadableDocument
from docml_contract.jobs import ExportedModel, JobSpec, TrainTask
from docml_contract.manifests import JobOutput, Manifest, PreparedData
from docml_contract.names import (
    DOCUMENTS,
    ENCODED_SPLITS,
    EXPORT,
    INFERENCE,
    OUTPUT,
    PREDICTIONS,
    TIMINGS,
    TORCHSCRIPT,
    VALIDATION,
)
from resources.errors import MissingKey
from resources.jobs.engine.records import JobRecord, job_records
from resources.jobs.interface import JobResult
from resources.store.manifests import read_recorded

KEYS = ("artifact_guid", "label")  # the columns that the tables of all models share


@dataclass(frozen=True)
class SplitAnswers:
    """The tables that an inference job hands over, however they came about."""

    predictions: pa.Table
    documents: pa.Table
    timings: Mapping[str, Any]
    validation: pa.Table | None  # where a decision policy is to be made
    jobs: tuple[JobResult, ...] = ()

    @classmethod
    def read(
        cls, work: Work, folder: str, output: JobOutput | Manifest, jobs: tuple[JobResult, ...] = ()
    ) -> "SplitAnswers":
        """From the folder of a job's output, or where it was kept. IncompleteArtifact."""

        def content(name: str) -> bytes:
            return read_recorded(work.store, folder, output.file(name))

        asked = work.settings.auto_accept_precision is not None
        return cls(
            predictions=read_parquet(content(PREDICTIONS)),
            documents=read_parquet(content(DOCUMENTS)),
            timings=json.loads(content(TIMINGS)),
            validation=read_parquet(content(VALIDATION)) if asked else None,
            jobs=jobs,
        )

    def of_model(self, model: str) -> "SplitAnswers":
        """Those of one of the models."""

        def own(table: pa.Table) -> pa.Table:
            names = (name for name in table.column_names if name.rpartition("_")[0] == model)
            return table.select([*KEYS, *names])

        return SplitAnswers(
            predictions=own(self.predictions),
            documents=own(self.documents),
            timings={**self.timings, "models": {model: self.timings["models"][model]}},
            validation=None if self.validation is None else own(self.validation),
        )

    def joined(self, other: "SplitAnswers") -> "SplitAnswers":
        """Those of two models of a comparison on the same documents. IncompleteArtifact if they are others."""
        models = {**self.timings["models"], **other.timings["models"]}
        both = self.validation is not None and other.validation is not None
        return SplitAnswers(
            predictions=_join(self.predictions, other.predictions),
            documents=_join(self.documents, other.documents),
            timings={**self.timings, "models": models},
            validation=_join(self.validation, other.validation) if both else None,
        )


def _join(first: pa.Table, second: pa.Table) -> pa.Table:
    if any(first[key] != second[key] for key in KEYS):
        raise IncompleteArtifact("two trainings of a comparison answered different documents")
    for name in second.column_names:
        if name not in KEYS:
            first = first.append_column(name, second[name])
    return first


def find_answers(work: Work, data: PreparedData, manifests: Mapping[str, Manifest], spec: JobSpec) -> SplitAnswers:
    """The trainings' answers if they are those of these models on these data; else what the job of `spec` answers."""
    found = _of_trainings(work, data, manifests, spec.piece)
    if found is not None:
        with_seed = f" with {spec.piece.replace('-', ' ')}" if spec.piece else ""
        work.reporter.say(
            f"the jobs of the trainings{with_seed} have predicted the test split: no job is launched for it"
        )
        return found
    result = work.jobs.run(spec, {}, holder=work.holder, listener=work.reporter.listener(None))
    return SplitAnswers.read(work, result.output_prefix, result.output, (result,))


def inference_job(
    work: Work,
    folders: Mapping[str, str],
    manifests: Mapping[str, Manifest],
    inputs: Mapping[str, str],
    seed: int | None = None,
) -> JobSpec:
    """The job that answers with the models in these folders. seed: with which of SEEDS they were trained, if any."""
    models = {
        name: ExportedModel(
            path=folders[name].removeprefix(f"{work.place.experiment}/"),
            torchscript_sha256=manifests[name].file(TORCHSCRIPT).sha256,
            export_sha256=manifests[name].file(EXPORT).sha256,
        )
        for name in work.settings.model_names
    }
    return specs.inference_spec(work, prepared=recorded_data(work), models=models, inputs=inputs, seed=seed)


def find_seeded_answers(
    work: Work, data: PreparedData, seeds: Mapping[str, SeedModels], inputs: Mapping[str, str]
) -> tuple[SplitAnswers, dict[int, SplitAnswers]]:
    """The answers of the run's models, and those of all models by seed. seeds: the trainings of every model."""
    by_seed = {}
    for seed in work.seeds:
        folders, manifests = (
            {name: getattr(models, part)[seed] for name, models in seeds.items()} for part in ("folders", "manifests")
        )
        spec = inference_job(work, folders, manifests, inputs, seed)
        by_seed[seed] = find_answers(work, data, manifests, spec)
    joined: SplitAnswers | None = None
    for name, models in seeds.items():
        own = by_seed[models.chosen].of_model(name)
        joined = own if joined is None else joined.joined(own)
    assert joined is not None
    return replace(joined, jobs=tuple(job for answers in by_seed.values() for job in answers.jobs)), by_seed


def find_part_answers(work: Work) -> tuple[int, list[tuple[int, SplitAnswers]]]:
    """The number of train documents, and what the run's first model answered after training on so many of them. IncompleteArtifact."""
    parts = read_parts(work)
    if parts is None:
        return 0, []
    return parts.documents, [
        (part.size(parts.documents), SplitAnswers.read(work, folder, parts.manifests[part]))
        for part, folder in parts.folders.items()
    ]


def _of_trainings(
    work: Work, data: PreparedData, manifests: Mapping[str, Manifest], piece: str | None
) -> SplitAnswers | None:
    """What the jobs that made the run's models (or those of one seed) answered after it; None unless all models did."""
    records = [
        record
        for record in job_records(work.store, work.place)
        if record.status == "Completed" and record.spec.piece == piece
    ]
    joined: SplitAnswers | None = None
    for name in work.settings.model_names:
        mine = [record for record in records if record.spec.model == name and _fits(work, record, data)]
        answers = next(
            (found for record in reversed(mine) if (found := _of_training(work, record, manifests[name]))), None
        )
        if answers is None:
            return None
        joined = answers if joined is None else joined.joined(answers)
    return joined


def _fits(work: Work, record: JobRecord, data: PreparedData) -> bool:
    """Whether a job was to answer what the report needs, on these data."""
    phase = record.spec.task.inference if isinstance(record.spec.task, TrainTask) else None
    if phase is None or record.spec.inputs.get(ENCODED_SPLITS) != data.data_version:
        return False
    return phase.validation or work.settings.auto_accept_precision is None


def _of_training(work: Work, record: JobRecord, manifest: Manifest) -> SplitAnswers | None:
    """The answers that a job left beside its model, if that is the model that was published; None if it left none."""
    folder = f"{record.output_prefix}/{INFERENCE}"
    try:
        output = JobOutput.from_bytes(work.store.get(f"{folder}/{OUTPUT}"), work.store.uri(f"{folder}/{OUTPUT}"))
        answers = SplitAnswers.read(work, folder, output)
    except MissingKey:
        return None
    except (IncompleteArtifact, UnreadableDocument) as error:
        work.reporter.say(f"what {record.name} answered is not used: {error}")
        return None
    said = answers.timings["models"][record.spec.model]
    hashes = (manifest.file(TORCHSCRIPT).sha256, manifest.file(EXPORT).sha256)
    return answers if (said["torchscript_sha256"], said["export_sha256"]) == hashes else None
