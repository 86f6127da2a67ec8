"""What a step works with (`Work`), what it returns (`Outcome`), and what it raises.

StepError                what a step found wrong, below `DocmlError`
├── NotReady             an asset that the step reads has not been materialized in this run
├── NothingToReuse       a step that is not performed finds no earlier artifact whose inputs fit
├── UnclaimedRun         a run that nobody claimed, and that may not be claimed from here
└── ModelsFailed         some models of a comparison failed; the finished ones are kept
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from docml_assets.errors import DocmlError
from docml_assets.experiment.settings.settings import Settings
from docml_assets.experiment.use_case import UseCase
from docml_contract.jobs import Tracking
from docml_contract.manifests import CODE_VERSIONS, FileEntry, Manifest
from docml_contract.names import STEPS, TRAINING, TUNING, RunPlace
from resources.jobs.interface import JobResult, Jobs, Listener
from resources.labels import LabelSource
from resources.store import Store
from resources.store.manifests import publish_bytes, publish_staged


class StepError(DocmlError):
    """What a step found wrong."""


class NotReady(StepError):
    """An asset that the step reads has not been materialized in this run."""


class NothingToReuse(StepError):
    """A step that is not performed finds no earlier artifact whose inputs fit."""


class UnclaimedRun(StepError):
    """A run that nobody claimed, and that may not be claimed from here."""


class ModelsFailed(StepError):
    """Some models of a comparison failed; the finished ones are kept."""


def flagged_steps(settings: Settings) -> frozenset[str]:
    """The steps that the RUN_* flags turn on."""
    return frozenset(step for step in STEPS if getattr(settings, f"run_{step}"))


def in_order(steps: Collection[str]) -> str:
    """The steps as people read them, in the order of their work."""
    return ", ".join(step for step in STEPS if step in steps)


class Reporter(Protocol):
    """Where a step says what it does. Called from several threads."""

    links: dict[str, str]  # title -> URL of what jobs announced, such as a tracked training

    def say(self, text: str) -> None:
        """One sentence for people."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """`done` of `total` (None: unknown) units of `what`."""

    def listener(self, model: str | None) -> Listener:
        """Follows a job; `model` where the job belongs to one."""


class TrackingError(DocmlError):
    """Tracking is asked for and cannot work."""


@dataclass(frozen=True)
class TrackingAccount:
    """The deployment's Weights & Biases account (WANDB_API_KEY)."""

    environment: Mapping[str, str]

    def of(self, settings: Settings, place: RunPlace, model: str, *, tuned: bool, piece: str | None = None) -> Tracking:
        """Where `model`'s training reports: group = experiment, one tracked run a model (and seed). TrackingError without a key."""
        if settings.wandb_mode == "online" and not self.environment.get("WANDB_API_KEY"):
            raise TrackingError(
                "WANDB_MODE is online and WANDB_API_KEY is not set: set it (on aws as a reference "
                "secretsmanager:NAME#key), or set WANDB_MODE to offline or disabled"
            )
        job_type: Literal["training", "tuning", "comparison"] = (
            "tuning" if tuned else "comparison" if settings.is_comparison else "training"
        )
        return Tracking(
            mode=settings.wandb_mode,
            project=settings.wandb_project,
            entity=settings.wandb_entity,
            group=place.experiment,
            name="-".join(filter(None, (f"run_{place.number}", model, piece))),
            job_type=job_type,
        )


@dataclass(frozen=True)
class Work:
    """One run at one moment: its place, its frozen settings, the outside world."""

    place: RunPlace
    settings: Settings
    functions_source: str
    store: Store
    production: Store
    labels: LabelSource
    jobs: Jobs
    tracking: TrackingAccount
    environment: Mapping[str, str]
    kind: Literal["local", "aws"]
    image: str | None
    holder: str  # the Dagster run id
    reporter: Reporter
    performed: frozenset[str] | None = None  # the steps that this execution performs; None: whatever is asked
    use_case: UseCase | None = None  # None: classification

    def performs(self, step: str) -> bool:
        """Whether this execution works on `step`; otherwise it takes an earlier run's artifact."""
        return self.performed is None or step in self.performed

    @property
    def tunes(self) -> bool:
        """Whether the model of this run comes from a tuning."""
        if self.performed is not None and self.performed & {TRAINING, TUNING}:
            return TUNING in self.performed
        return self.settings.run_tuning

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that each model of this run is trained with; () where it is trained once, or tuned."""
        return () if self.tunes else self.settings.seeds

    @property
    def learning_curve(self) -> bool:
        """Whether the first model is trained on parts of the documents, too."""
        return self.settings.learning_curve and not self.tunes

    def describe(self) -> str:
        """The run, as messages name it."""
        return f"{self.place.experiment} run {self.place.number}"

    def publish(
        self,
        asset: str,
        folder: str,
        content: Mapping[str, bytes] | JobResult,
        *,
        cache_key: str,
        data_version: str,
        inputs: Mapping[str, str],
        made_by_run: int | None = None,
        copied: Mapping[str, FileEntry] | None = None,
    ) -> Manifest:
        """Finish a folder: its files (name -> bytes, or what a job handed over), then its manifest, which is returned.

        A folder that is finished already stays as it is. `made_by_run`: where not this run made the content. `copied`: files of other
        finished folders (key -> entry) that join those given as bytes.
        """
        fields = {
            "asset": asset,
            "experiment": self.place.experiment,
            "run": made_by_run or self.place.number,
            "cache_key": cache_key,
            "data_version": data_version,
            "inputs": dict(inputs),
            "code_version": CODE_VERSIONS[asset],
        }
        if isinstance(content, JobResult):
            return publish_staged(self.store, content.output_prefix, folder, content.output, **fields)
        return publish_bytes(self.store, folder, content, copied=copied, **fields)


How = Literal["made", "finished", "reused"]


@dataclass(frozen=True)
class Outcome:
    """The artifact of a step in this run, however it came about."""

    asset: str
    how: How  # made now; finished before; reused from an earlier run
    why: str  # one sentence for people
    data_version: str
    inputs: Mapping[str, str]  # asset name -> data version that was read
    folders: Mapping[str, str]  # "" or the model's name -> folder in the store that holds the files
    manifests: Mapping[str, Manifest]  # keyed likewise
    reused_from: int | None = None  # the run that made the artifact, where that is another one
    jobs: tuple[JobResult, ...] = ()

    @classmethod
    def of(
        cls, work: Work, manifest: Manifest, folder: str, *, how: How, why: str, jobs: tuple[JobResult, ...] = ()
    ) -> "Outcome":
        """The outcome of an artifact that is one folder."""
        return cls(
            asset=manifest.asset,
            how=how,
            why=why,
            data_version=manifest.data_version,
            inputs=manifest.inputs,
            folders={"": folder},
            manifests={"": manifest},
            reused_from=manifest.run if manifest.run != work.place.number else None,
            jobs=jobs,
        )

    @property
    def manifest(self) -> Manifest:
        """The one manifest of an artifact that is one folder."""
        (manifest,) = self.manifests.values()
        return manifest

    @property
    def folder(self) -> str:
        """The one folder of such an artifact."""
        (folder,) = self.folders.values()
        return folder
