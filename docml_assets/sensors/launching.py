"""What the sensors that start runs share: what is launched, and how Dagster is asked to.

A launch is a claimed run. The claim is put once, and the run key is the run itself: however often a tick is repeated after a crash,
Dagster starts one run for it.
"""

import hashlib
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import dagster as dg
from pydantic import Field, ValidationError

from docml_assets.experiment.folder import SETTINGS
from docml_assets.experiment.settings.settings import Settings, parse_settings
from docml_assets.partitions import EXPERIMENT, partition_key, registration_requests, run_tags
from docml_assets.runs.claims import Claim
from docml_assets.steps.work import flagged_steps, in_order
from docml_contract.base import Document, short
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

    def write(self) -> str:
        """The memory as a text; the UI shows it with every tick, so that it is short."""
        return self.model_dump_json(exclude_defaults=True)


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
        return f"{self.claim.experiment} run {self.claim.run} starts ({in_order(flagged_steps(self.settings))})"

    def run_request(self) -> dg.RunRequest:
        """The run as Dagster is asked for it; the same claim is never asked for twice."""
        return dg.RunRequest(
            run_key=f"{self.claim.experiment}|{self.claim.run}",
            partition_key=partition_key(self.claim.experiment, self.claim.run),
            tags={
                EXPERIMENT: self.claim.experiment,
                **run_tags(flagged_steps(self.settings), self.settings, self.claim.trigger),
            },
        )


# How an experiment stands at a tick, in the order in which the summary counts them.
State = Literal["start", "broken", "failed", "edited", "changed", "waiting", "unchanged"]
_COUNTED: dict[State, tuple[str, str]] = {
    "start": ("starts a run", "start runs"),
    "broken": ("is broken", "are broken"),
    "failed": ("has a failed run", "have failed runs"),
    "edited": ("was edited after its run was claimed", "were edited after their runs were claimed"),
    "changed": ("has changed in production", "have changed in production"),
    "waiting": ("waits", "wait"),
    "unchanged": ("as before", "as before"),
}


@dataclass
class TickFindings:
    """What a tick found: launches, what is new for people (each once, into the tick's log), how each experiment stands, and events for
    Dagster's history."""

    launches: list[Launch] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    events: list[dg.AssetObservation | dg.AssetCheckEvaluation] = field(default_factory=list)
    states: dict[str, tuple[State, str]] = field(default_factory=dict)

    def result(
        self, context: dg.SensorEvaluationContext, cursor: str, known: Collection[str], where: Path
    ) -> dg.SensorResult:
        """The answer to Dagster. A tick that launches shows no sentence in the UI: its log has them."""
        said = plain(describe_states(self.states, known, where))
        if self.launches:
            context.log.info(said)
        for report in self.reports:
            context.log.warning(plain(report))
        return dg.SensorResult(
            run_requests=[launch.run_request() for launch in self.launches],
            skip_reason=None if self.launches else said,
            dynamic_partitions_requests=registration_requests(launch.claim.place for launch in self.launches),
            asset_events=self.events,
            cursor=cursor,
        )


def describe_states(states: Mapping[str, tuple[State, str]], known: Collection[str], where: Path) -> str:
    """What a tick says: how many experiments it looked at and how they stand, then a paragraph for each of which there is more to say."""
    if not known:
        return f"no experiment folder in {where}"
    looked = f"{len(states)} of {len(known)} experiments" if len(states) < len(known) else _experiments(len(known))
    counts = Counter(state for state, _ in states.values())
    shown = ", ".join(f"{counts[state]} {_COUNTED[state][counts[state] > 1]}" for state in _COUNTED if counts[state])
    budget = f" The others come at the next tick: one takes up to {BUDGET_SECONDS:g} s." * (len(states) < len(known))
    more = [f"{name}: {text}" for name, (_, text) in sorted(states.items()) if text]
    return "\n".join([f"Looked at {looked} in {where}{f': {shown}' if shown else ''}.{budget}", *more])


def _experiments(count: int) -> str:
    return f"{count} experiment{'' if count == 1 else 's'}"


def minute() -> str:
    """Now, as a tick says since when something is so."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def content_digest(folder: Path) -> str:
    """Hash of both files as they are now; a missing one counts as such."""
    digest = hashlib.sha256()
    for name in (SETTINGS, USER_FUNCTIONS):
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            content = type(error).__name__.encode()
        digest.update(hashlib.sha256(content).digest())
    return short(digest.hexdigest())


def in_turn(names: Mapping[str, Any], after: str | None, clock: Callable[[], float] = time.monotonic) -> Iterator[str]:
    """The names in order, beginning after `after` and going round, until the tick's budget is spent."""
    ordered = sorted(names)
    start = next((index for index, name in enumerate(ordered) if after is not None and name > after), 0)
    deadline = clock() + BUDGET_SECONDS
    for name in ordered[start:] + ordered[:start]:
        if clock() >= deadline:
            return
        yield name
