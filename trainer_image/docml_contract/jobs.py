"""Job specs: everything that decides what a job does, wherever it runs.

A spec has two halves. The *task*, the channels and the hashes of the accompanying files say what is computed; `spec_hash`
covers these (but for what changes no result), so that a job found under our name can be recognised as ours. `Compute` says
on what; it may differ between attempts without changing the work.
"""

import hashlib
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from docml_contract.base import Document, digest
from docml_contract.hyperparameters import SearchRange
from docml_contract.manifests import FileEntry
from docml_contract.names import SPEC_HASH_VARIABLE

Kind = Literal["processing", "training", "tuning"]
Step = Literal["preparation", "preparation-merge", "training", "tuning", "inference", "prediction"]


class RecordedFiles(Document):
    """What files held when they were made, as the manifest of their finished folder says."""

    folder: str = Field(description="the finished folder's key prefix")
    files: tuple[FileEntry, ...] = Field(description="paths relative to the channel")

    def below(self, path: str) -> "RecordedFiles":
        """Of these the files below a folder of the finished one, with paths from there on."""
        inner = (entry for entry in self.files if entry.path.startswith(f"{path}/"))
        files = tuple(entry.model_copy(update={"path": entry.path.removeprefix(f"{path}/")}) for entry in inner)
        return RecordedFiles(folder=self.folder, files=files)


class Channel(Document):
    """Input files of a job: all below a key prefix, or the ones listed."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="folder name inside the container")
    prefix: str = Field(description="key prefix below the store's root, without a trailing slash")
    files: tuple[str, ...] | None = Field(
        None, description="paths relative to the prefix (SageMaker's ManifestFile); none: everything below it"
    )
    recorded: RecordedFiles | None = Field(
        None, description="what the files must hold; no part of the spec hash, in which `inputs` names what they mean"
    )


class Compute(Document):
    """On what a job runs. Not part of the spec hash."""

    instance_type: str
    instance_count: int = Field(1, ge=1)
    volume_gb: int = Field(30, ge=1)
    max_runtime_seconds: int = Field(86_400, ge=60)
    use_spot: bool = False
    max_wait_seconds: int | None = None
    keep_alive_seconds: int | None = None
    image: str | None = Field(None, description="image URI; none where jobs run as local processes")
    max_cost_usd: float | None = Field(None, description="refuse the job if its worst case costs more")


class PrepareTask(Document):
    """Encode documents into train, valid and test splits."""

    command: Literal["prepare"] = "prepare"
    phase: Literal["whole", "shard", "merge"] = Field(
        "whole", description="shard: encode this host's artifacts; merge: join the shards and assign splits"
    )
    model_names: tuple[str, ...]
    own_hyperparameters: dict[str, Any] = Field(description="the experimenter's own, all that encode_data sees")
    model_hyperparameters: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="model of a comparison -> those of them that differ for it"
    )
    model_input_files: tuple[str, ...] = Field(description="names and patterns of the files that encode_data gets")
    optional_files: tuple[str, ...] = Field((), description="those of model_input_files that an artifact may lack")
    ignored_labels: tuple[str, ...] = ()
    num_labels_threshold: int = 0
    max_artifacts: int | None = None
    near_duplicate_threshold: float = 0.9
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    split_seed: int = 13
    split_by: str | None = None
    max_failed_share: float = 0.0
    baseline: bool = Field(False, description="fit the baseline beside the encoded data; no row depends on it")
    processes: int | None = Field(None, description="encoding processes per host; none: one per core")


class Tracking(Document):
    """Where a training reports its curves."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "docml"
    entity: str | None = None
    group: str
    name: str
    job_type: Literal["training", "tuning", "comparison"]


class InferencePhase(Document):
    """After a training, in the same job: answer the test split with the exported model."""

    validation: bool = Field(False, description="the validation split as well")


class TrainPart(Document):
    """One of several parts of the train documents, which do not overlap; each has about every label's share."""

    divisor: int = Field(ge=2, description="the number of parts")
    index: int = Field(ge=0, description="which of them, from 0")

    def size(self, documents: int) -> int:
        """How many it has of so many documents."""
        return -(-(documents - self.index) // self.divisor)

    def __str__(self) -> str:
        return f"part {self.index + 1} of {self.divisor}"


FEWEST_OF_PART = 8  # documents
# Of a model's learning curve: two halves, two quarters and two eighths, together less than two trainings on everything
CURVE_PARTS = tuple(TrainPart(divisor=divisor, index=index) for divisor in (2, 4, 8) for index in (0, 1))


class TrainTask(Document):
    """Train one model, keep its best epoch, export it. Hyperparameters travel beside the task (`JobSpec.hyperparameters`)."""

    command: Literal["train"] = "train"
    experiment: str
    run: int
    model_name: str
    model_names: tuple[str, ...]
    use_distributed: bool = False
    cpu_processes: int = 1
    objective_metric: str = "valid_f1"
    objective_type: Literal["Maximize", "Minimize"] = "Maximize"
    tracking: Tracking
    inference: InferencePhase | None = Field(
        None, description="none: a job of its own answers; no weight depends on it"
    )
    part: TrainPart | None = Field(None, description="for a learning curve; none: trained on all train documents")
    speedup: Literal["auto"] | None = Field(
        None, description="auto: a faster file is exported where hardly a label changes"
    )


class ExportedModel(Document):
    """A model that inference loads from the `models` channel."""

    path: str = Field(description="folder relative to the channel")
    torchscript_sha256: str
    export_sha256: str


class InferTask(Document):
    """Predict the test split with every model of the run."""

    command: Literal["infer"] = "infer"
    model_names: tuple[str, ...]
    models: dict[str, ExportedModel]
    processes: int | None = Field(None, description="inference processes; none: chosen from cores and model count")
    validation: bool = Field(
        False, description="answer the validation split as well: a decision policy is made from it"
    )


class PredictTask(Document):
    """Encode documents without labels, and predict them with the model of the deployment folder in the channel `deployment`."""

    command: Literal["predict"] = "predict"
    manifest_sha256: str = Field(description="of the deployment folder's MANIFEST.json")
    processes: int | None = Field(None, description="encoding processes; none: one per core")


# Of a spec: machines, provenance, and the hashes by which a job finds damage in its input.
NOT_HASHED: dict[str, Any] = {"compute": True, "provenance": True, "channels": {"__all__": {"recorded"}}}
Task = Annotated[PrepareTask | TrainTask | InferTask | PredictTask, Field(discriminator="command")]


class Tuning(Document):
    """The search around a training task."""

    ranges: dict[str, SearchRange]
    strategy: Literal["Bayesian", "Random", "Grid"] = "Bayesian"
    objective_metric: str = "valid_f1"
    objective_type: Literal["Maximize", "Minimize"] = "Maximize"
    max_jobs: int = Field(10, ge=1)
    max_parallel_jobs: int = Field(1, ge=1)
    seed: int = 13


class JobSpec(Document):
    """One job, wherever it runs."""

    kind: Kind
    experiment: str
    run: int = Field(ge=1)
    step: Step
    model: str | None = Field(None, description="for training and tuning")
    piece: str | None = Field(
        None, description="tells apart the jobs of a step that a run may have many of; enters the job's name"
    )
    task: Task
    hyperparameters: dict[str, Any] = Field(default_factory=dict, description="training and tuning: constants")
    channels: tuple[Channel, ...] = Field(description="besides the `spec` channel, which every job has")
    files: dict[str, str] = Field(
        default_factory=dict, description="files of the `spec` channel besides spec.json: name -> sha256"
    )
    tuning: Tuning | None = None
    metric_definitions: tuple[tuple[str, str], ...] = Field((), description="(name, regex) read from the log")
    inputs: dict[str, str] = Field(default_factory=dict, description="asset name -> data version that the job reads")
    provenance: dict[str, str] = Field(
        default_factory=dict, description="git revision and the like, for the model card; not part of the spec hash"
    )
    compute: Compute

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "tuning") != (self.tuning is not None):
            raise ValueError("a tuning job, and no other, has a search space")
        if (self.kind == "processing") == (self.model is not None):
            raise ValueError("training and tuning jobs, and no others, belong to one model")
        return self

    @property
    def request_variables(self) -> dict[str, str]:
        """What every job's request carries: the hash of its spec's bytes, which name the hashes of the accompanying files."""
        return {SPEC_HASH_VARIABLE: hashlib.sha256(self.to_bytes()).hexdigest()}

    @property
    def needs_network(self) -> bool:
        """Whether it loads models and tokenizers from a hub, or reports. Inference and the merging of shards run nothing of the
        experimenter's."""
        return self.step not in ("inference", "preparation-merge")

    @property
    def spec_hash(self) -> str:
        """sha256 of what decides the result: equal hashes mean the same work.

        Left out are machines, provenance, where curves are reported, numbers of processes, whether a baseline stands beside the
        encoded data, and what a training's job does when it has trained: no row and no weight depends on them.
        """
        content = self.model_dump(
            mode="json", exclude={**NOT_HASHED, "task": {"tracking", "processes", "baseline", "inference"}}
        )
        if isinstance(self.task, TrainTask):
            content["channels"] = [channel for channel in content["channels"] if channel["name"] != "test"]
        content["instance_count"] = self.compute.instance_count  # sharding and data-parallel order depend on it
        if self.piece is None:
            content.pop("piece")  # as before there were any
        for later in ("optional_files", "model_hyperparameters", "validation", "part", "speedup"):
            if not content["task"].get(later):
                content["task"].pop(later, None)  # specs of before there were any keep their hashes
        return digest(content)
