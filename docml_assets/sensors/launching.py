"""What the sensors that start runs share: what is launched, and how Dagster is asked to.

A launch is a claimed run. The claim is put once, and the run key is the run itself: however often a tick is repeated after a crash,
Dagster starts one run for it.
"""

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import dagster as dg
from pydantic import Field, ValidationError

from docml_assets.experiment.folder import SETTINGS
from docml_assets.experiment.settings.settings import Settings, parse_settings
from docml_assets.partitions import partition_key, registration_requests, run_tags
from docml_assets.runs.claims import Claim
from docml_assets.steps.work import flagged_steps
from docml_contract.base import Document
from docml_contract.names import USER_FUNCTIONS
from docml_contract.plain_text import plain

# A tick ends after so long, and the next one goes on where it ended.
BUDGET_SECONDS = 4.0

read_settings = lru_cache(maxsize=4096)(parse_settings)  # the texts hardly change from tick to tick

# A tick does not wait longer for a store that does not answer: the next one asks again.
TICK_PATIENCE_SECONDS = 20.0


class SensorCursor(Document):
    """What a sensor remembers from tick to tick."""

    id: str = Field(default_factory=lambda: str(uuid.uuid4()), description="of this memory; part of its claims")
    after: str | None = Field(None, description="the folder that the last tick ended with")

    @classmethod
    def read(cls, text: str | None) -> Self:
        """The memory, or a new one if there is none that can be read: then claims made so far count as another's."""
        try:
            return cls.model_validate_json(text) if text else cls()
        except ValidationError:
            return cls()


@dataclass(frozen=True)
class Launch:
    """A claimed run that is to be started, with the settings of the folder that do not freeze."""

    claim: Claim
    settings: Settings

    @classmethod
    def of(cls, claim: Claim, folder_settings: Settings) -> "Launch":
        """SettingsError if the folder's settings that do not freeze contradict the claim's."""
        return cls(claim, claim.settings.with_operational({**folder_settings.operational(), "run_num": claim.run}))

    def __str__(self) -> str:
        steps = ", ".join(sorted(flagged_steps(self.settings)))
        return f"{self.claim.experiment} run {self.claim.run} starts ({steps})"

    def run_request(self) -> dg.RunRequest:
        """The run as Dagster is asked for it; the same claim is never asked for twice."""
        return dg.RunRequest(
            run_key=f"{self.claim.experiment}|{self.claim.run}",
            partition_key=partition_key(self.claim.experiment, self.claim.run),
            tags=run_tags(flagged_steps(self.settings), self.settings, self.claim.trigger),
        )


@dataclass
class TickFindings:
    """What a tick found: launches, what people should know (each once), and events for Dagster's history."""

    launches: list[Launch] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    events: list[dg.AssetObservation | dg.AssetCheckEvaluation] = field(default_factory=list)

    def result(self, context: dg.SensorEvaluationContext, cursor: str, idle: str) -> dg.SensorResult:
        """The answer to Dagster; reports go into the tick's log as well."""
        reports = [plain(report) for report in self.reports]
        for report in reports:
            context.log.warning(report)
        said = "\n".join([*map(str, self.launches), *reports])
        return dg.SensorResult(
            run_requests=[launch.run_request() for launch in self.launches],
            skip_reason=None if self.launches else said or idle,
            dynamic_partitions_requests=registration_requests(launch.claim.place for launch in self.launches),
            asset_events=self.events,
            cursor=cursor,
        )


def experiment_folders(root: Path) -> dict[str, Path]:
    """The folders below `root` that have a settings.ini, by name; hidden ones are drafts."""
    if not root.is_dir():
        return {}
    return {
        path.name: path
        for path in sorted(root.iterdir())
        if not path.name.startswith(".") and (path / SETTINGS).is_file()
    }


def content_digest(folder: Path) -> str:
    """sha256 of both files as they are now; a missing one counts as such."""
    digest = hashlib.sha256()
    for name in (SETTINGS, USER_FUNCTIONS):
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            content = type(error).__name__.encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def in_turn(names: Mapping[str, Any], after: str | None, clock: Callable[[], float] = time.monotonic) -> Iterator[str]:
    """The names in order, beginning after `after` and going round, until the tick's budget is spent."""
    ordered = sorted(names)
    start = next((index for index, name in enumerate(ordered) if after is not None and name > after), 0)
    deadline = clock() + BUDGET_SECONDS
    for name in ordered[start:] + ordered[:start]:
        if clock() >= deadline:
            return
        yield name
