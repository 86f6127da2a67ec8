"""What the asset bodies share: the `Work` of a partition, and where a step's words go."""

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import dagster as dg

from docml_assets.experiment.settings.settings import Settings
from docml_assets.partitions import run_place
from docml_assets.processes import PROCESS_TAG
from docml_assets.progress import display
from docml_assets.steps.snapshot import existing_claim, frozen_settings, operation_tag, read_operation_tag
from docml_assets.steps.work import Work
from docml_contract import log_lines
from docml_contract.names import STEPS, RunPlace
from resources.jobs.interface import Listener
from resources.processes import this_process

# Run tags. Steps: the steps that the run performs, others are reused (absent: whatever is selected). Operation: the settings that do
# not freeze, as the experiment folder had them. Trigger: what started the run.
STEPS_TAG = "docml/steps"
OPERATION_TAG = "docml/operation"
TRIGGER_TAG = "docml/trigger"

RESOURCES = frozenset({"deployment", "store", "production", "labels", "jobs", "tracking"})
OWNERS = ["team:docml"]
SECONDS_BETWEEN_PROGRESS_LOGS = 10.0

Context = dg.AssetExecutionContext | dg.AssetCheckExecutionContext


def run_tags(steps: frozenset[str], settings: Settings, trigger: Mapping[str, Any]) -> dict[str, str]:
    """The tags by which the assets know what a run is to do."""
    return {
        STEPS_TAG: ",".join(step for step in STEPS if step in steps),
        OPERATION_TAG: operation_tag(settings),
        TRIGGER_TAG: json.dumps(trigger, sort_keys=True),
    }


def place_of(context: Context) -> RunPlace:
    """The run of the partition that is materialized or checked."""
    return run_place(context.partition_key)


def trigger_of(context: Context) -> dict[str, Any]:
    """What started the run, for the claim."""
    text = context.run.tags.get(TRIGGER_TAG)
    return json.loads(text) if text else {"kind": "ui", "dagster_run_id": context.run.run_id}


def note_process(context: Context) -> None:
    """Let the run carry the process that executes it: a run whose process is gone can be told from one that works on."""
    mine = str(this_process())
    if context.run.tags.get(PROCESS_TAG) != mine:
        context.instance.add_run_tags(context.run.run_id, {PROCESS_TAG: mine})


def work_for(context: Context, asset: str) -> Work:
    """Everything that a step of this partition needs. UnclaimedRun if nobody claimed the run."""
    place = place_of(context)
    note_process(context)
    resources = context.op_execution_context.resources
    claim = existing_claim(resources.store, place)
    tags = context.run.tags
    return Work(
        place=place,
        settings=frozen_settings(claim, read_operation_tag(tags.get(OPERATION_TAG))),
        functions_source=claim.functions_source,
        store=resources.store,
        production=resources.production,
        labels=resources.labels,
        jobs=resources.jobs,
        tracking=resources.tracking,
        environment=resources.deployment.environment,
        kind=resources.deployment.kind,
        image=resources.deployment.image,
        holder=context.run.run_id,
        reporter=DagsterReporter(context, asset),
        performed=_performed(tags.get(STEPS_TAG)),
    )


def _performed(tag: str | None) -> frozenset[str] | None:
    if tag is None:
        return None
    steps = frozenset(filter(None, tag.split(",")))
    unknown = sorted(steps - set(STEPS))
    if unknown:
        raise ValueError(
            f"run tag {STEPS_TAG}={tag!r}: unknown {', '.join(unknown)}; expected some of {', '.join(STEPS)}"
        )
    return steps


class DagsterReporter:
    """Says what a step does in Dagster's log, and on the terminal where there is one."""

    def __init__(self, context: Context, asset: str) -> None:
        self._context = context
        self._asset = asset
        self._progress: dict[str, tuple[float, float]] = {}  # what -> (begun, last logged)
        self.links: dict[str, str] = {}

    def say(self, text: str) -> None:
        self._context.log.info(text)
        display().said(self._asset, text)

    def progress(self, what: str, done: int, total: int | None) -> None:
        display().progressed(self._asset, what, done, total)
        now = time.monotonic()
        begun, logged = self._progress.setdefault(what, (now, now))
        if now - logged < SECONDS_BETWEEN_PROGRESS_LOGS:
            return
        self._progress[what] = (begun, now)
        rate = done / (now - begun)
        left = f", about {(total - done) / rate:.0f} s left" if total and rate else ""
        self._context.log.info(f"{what}: {done}{f' of {total}' if total else ''}, {rate:.1f} a second{left}")

    def listener(self, model: str | None) -> Listener:
        return JobListener(self._context, self._asset, model, self)


class JobListener:
    """Follows a job: its lines into the run's log, its epochs into the asset's observations while it trains."""

    def __init__(self, context: Context, asset: str, model: str | None, reporter: DagsterReporter) -> None:
        self._context = context
        self._asset = asset
        self._model = model
        self._prefix = f"[{model}] " if model else ""
        self._reporter = reporter
        self._hosts: set[str] = set()
        self._lock = threading.Lock()

    def line(self, host: str, text: str) -> None:
        with self._lock:
            self._hosts.add(host)
            where = f"{host}: " if len(self._hosts) > 1 else ""
        self._context.log.info(f"{self._prefix}{where}{text}")
        display().job_line(self._asset, self._model, text)

    def status(self, text: str) -> None:
        self._reporter.say(f"{self._prefix}{text}")

    def event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == log_lines.EPOCH:
            self._epoch(event)
        elif kind == log_lines.PROGRESS:
            what = f"{self._prefix}{event.get('what', 'progress')}"
            self._reporter.progress(what, int(event.get("done", 0)), event.get("total"))
        elif kind == log_lines.TRACKING:
            self._reporter.links[f"tracking{f' ({self._model})' if self._model else ''}"] = str(event["url"])
            self.status(f"tracked at {event['url']}")

    def _epoch(self, event: dict[str, Any]) -> None:
        values = {key: value for key, value in event.items() if key != "event" and isinstance(value, int | float)}
        shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        self._context.log.info(f"{self._prefix}{shown}")
        self._context.op_execution_context.log_event(
            dg.AssetObservation(
                asset_key=self._asset,
                partition=str(self._context.partition_key),
                description=f"{self._prefix}epoch {event.get('epoch')}",
                metadata={f"{self._prefix}{key}": value for key, value in values.items()},
            )
        )
        display().epoch(self._asset, self._model, event)
