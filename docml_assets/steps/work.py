"""What a step works with (`Work`) and what it returns (`Outcome`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from docml_assets.experiment.settings.settings import Settings
from docml_assets.tracking import TrackingAccount
from docml_contract.manifests import Manifest
from docml_contract.names import STEPS, TRAINING, TUNING, RunPlace
from resources.jobs.interface import JobResult, Jobs, Listener
from resources.labels import LabelSource
from resources.store import Store


def flagged_steps(settings: Settings) -> frozenset[str]:
    """The steps that the RUN_* flags turn on."""
    return frozenset(step for step in STEPS if getattr(settings, f"run_{step}"))


class Reporter(Protocol):
    """Where a step says what it does. Called from several threads."""

    links: dict[str, str]  # title -> URL of what jobs announced, such as a tracked training

    def say(self, text: str) -> None:
        """One sentence for people."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """`done` of `total` (none: unknown) units of `what`."""

    def listener(self, model: str | None) -> Listener:
        """Hears a job; `model` where the job belongs to one."""


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
    performed: frozenset[str] | None = None  # the steps that this execution performs; none: whatever is asked

    def performs(self, step: str) -> bool:
        """Whether this execution works on `step`; otherwise it takes an earlier run's artifact."""
        return self.performed is None or step in self.performed

    @property
    def tunes(self) -> bool:
        """Whether the model of this run comes from a tuning."""
        if self.performed is not None and self.performed & {TRAINING, TUNING}:
            return TUNING in self.performed
        return self.settings.run_tuning

    def describe(self) -> str:
        return f"{self.place.experiment} run {self.place.number}"


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
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def manifest(self) -> Manifest:
        """The one manifest of an artifact that is one folder."""
        (manifest,) = self.manifests.values()
        return manifest

    @property
    def folder(self) -> str:
        (folder,) = self.folders.values()
        return folder
