"""Settings -> job specs: what each job is asked to do, and on what."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from docml_assets.experiment.settings.settings import Step
from docml_assets.steps.work import Work
from docml_contract.jobs import (
    Channel,
    Compute,
    ExportedModel,
    InferencePhase,
    InferTask,
    JobSpec,
    PredictTask,
    PrepareTask,
    RecordedFiles,
    TrainPart,
    TrainTask,
    Tuning,
)
from docml_contract.names import EXPORT, INFERENCE, PREDICTION, TORCHSCRIPT, TRAINING, TUNING

Phase = Literal["whole", "shard", "merge"]


@dataclass(frozen=True)
class PlannedTraining:
    """One training of the run: a model, with one of SEEDS or on a part of the documents where that is asked, and its folder."""

    model: str
    folder: str
    seed: int | None = None
    part: TrainPart | None = None

    @property
    def piece(self) -> str | None:
        """What tells its job apart from those of the model's other trainings."""
        return str(self.part).replace(" ", "-") if self.part else piece_of(self.seed)

    def __str__(self) -> str:
        more = self.part or (None if self.seed is None else f"seed {self.seed}")
        return self.model if more is None else f"{self.model}, {more}"


def step_compute(work: Work, step: Step, *, hosts: int | None = None) -> Compute:
    """On what a step's jobs run, in the run's image."""
    image = None if work.kind == "local" else work.settings.docker_image or work.image
    return work.settings.compute(step, image=image, hosts=hosts)


def preparation_spec(
    work: Work, *, phase: Phase, channel: Channel, files: Mapping[str, bytes], inputs: Mapping[str, str]
) -> JobSpec:
    """Encode the run's documents into splits; sharded preparations end with a merge on one host."""
    settings = work.settings
    return JobSpec(
        kind="processing",
        experiment=work.place.experiment,
        run=work.place.number,
        step="preparation-merge" if phase == "merge" else "preparation",
        task=PrepareTask(
            phase=phase,
            model_names=settings.model_names,
            own_hyperparameters=settings.own_hyperparameters,
            model_hyperparameters=settings.own_model_hyperparameters,
            model_input_files=settings.model_input_files,
            optional_files=settings.optional_input_files,
            ignored_labels=settings.ignored_labels,
            num_labels_threshold=settings.num_labels_threshold,
            max_artifacts=settings.max_artifacts,
            near_duplicate_threshold=settings.near_duplicate_threshold,
            split=settings.split,
            split_seed=settings.split_seed,
            split_by=settings.split_by,
            max_failed_share=settings.max_failed_share,
            baseline=settings.baseline,
            processes=settings.preparation_processes,
        ),
        channels=(channel,),
        files=hash_files(files),
        inputs=dict(inputs),
        compute=step_compute(work, "preparation", hosts=1 if phase == "merge" else None),
    )


def training_spec(
    work: Work,
    training: PlannedTraining,
    *,
    prepared: RecordedFiles,
    files: Mapping[str, bytes],
    inputs: Mapping[str, str],
    provenance: Mapping[str, str],
) -> JobSpec:
    """Train one model, or search for its hyperparameters, on prepared data."""
    settings, model = work.settings, training.model
    constants = settings.tuning_constants_of(model) if work.tunes else settings.hyperparameters_of(model)
    infers = (settings.infers_in_training and work.performs(INFERENCE) and not work.tunes) or training.part is not None
    inference = InferencePhase(validation=settings.auto_accept_precision is not None) if infers else None
    return JobSpec(
        kind="tuning" if work.tunes else "training",
        experiment=work.place.experiment,
        run=work.place.number,
        step=TUNING if work.tunes else TRAINING,
        model=model,
        piece=training.piece,
        task=TrainTask(
            experiment=work.place.experiment,
            run=work.place.number,
            model_name=model,
            model_names=settings.model_names,
            use_distributed=settings.use_distributed,
            cpu_processes=settings.cpu_processes,
            objective_metric=settings.objective_metric_name,
            objective_type=settings.objective_type,
            tracking=work.tracking.of(settings, work.place, model, tuned=work.tunes, piece=training.piece),
            inference=inference,
            part=training.part,
            speedup=settings.inference_speedup,
        ),
        hyperparameters=constants if training.seed is None else {**constants, "seed": training.seed},
        channels=tuple(
            _split_channel(prepared, split) for split in ("train", "valid", *(["test"] if inference else []))
        ),
        files=hash_files(files),
        tuning=_search(work, model) if work.tunes else None,
        metric_definitions=settings.metric_definitions,
        inputs=dict(inputs),
        provenance=dict(provenance),
        compute=step_compute(work, "training"),
    )


def piece_of(seed: int | None) -> str | None:
    """What tells apart the jobs of a run's seeds; None where there is one."""
    return None if seed is None else f"seed-{seed}"


def _split_channel(prepared: RecordedFiles, split: str) -> Channel:
    return Channel(name=split, prefix=f"{prepared.folder}/{split}", recorded=prepared.below(split))


def _search(work: Work, model: str) -> Tuning:
    settings = work.settings
    return Tuning(
        ranges=settings.ranges_of(model),
        strategy=settings.tuning_strategy,
        objective_metric=settings.objective_metric_name,
        objective_type=settings.objective_type,
        max_jobs=settings.max_jobs,
        max_parallel_jobs=settings.max_parallel_jobs,
        seed=int(settings.hyperparameters_of(model)["seed"]),
    )


def inference_spec(
    work: Work,
    *,
    prepared: RecordedFiles,
    models: Mapping[str, ExportedModel],
    inputs: Mapping[str, str],
    seed: int | None = None,
) -> JobSpec:
    """Predict the test split of prepared data with every model of the run; for a decision policy the validation split, too.

    seed: with which of SEEDS the models were trained; None where there are none.
    """
    validation = work.settings.auto_accept_precision is not None
    return JobSpec(
        kind="processing",
        experiment=work.place.experiment,
        run=work.place.number,
        step=INFERENCE,
        piece=piece_of(seed),
        task=InferTask(model_names=work.settings.model_names, models=dict(models), validation=validation),
        channels=(
            *(_split_channel(prepared, split) for split in ("test", *(["valid"] if validation else []))),
            Channel(
                name="models",
                prefix=work.place.experiment,
                files=tuple(f"{model.path}/{name}" for model in models.values() for name in (TORCHSCRIPT, EXPORT)),
            ),
        ),
        inputs=dict(inputs),
        compute=step_compute(work, "inference"),
    )


def prediction_spec(
    work: Work,
    *,
    deployment: str,
    manifest_sha256: str,
    documents: Channel,
    piece: str,
    files: Mapping[str, bytes],
    inputs: Mapping[str, str],
) -> JobSpec:
    """Predict documents without labels with the model of a deployment folder."""
    return JobSpec(
        kind="processing",
        experiment=work.place.experiment,
        run=work.place.number,
        step=PREDICTION,
        piece=piece,
        task=PredictTask(manifest_sha256=manifest_sha256, processes=work.settings.preparation_processes),
        channels=(Channel(name="deployment", prefix=deployment), documents),
        files=hash_files(files),
        inputs=dict(inputs),
        compute=step_compute(work, "inference"),
    )


def hash_files(files: Mapping[str, bytes]) -> dict[str, str]:
    """sha256 by name, as the spec carries them."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
