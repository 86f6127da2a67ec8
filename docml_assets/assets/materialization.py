"""How an asset is materialized: the body that all share, the `Work` of its partition, and where a step's words go."""

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any
from urllib.parse import urlsplit

import dagster as dg

from docml_assets.assets.metadata import Metadata, brief, common, plotted
from docml_assets.dagster_internals import ExplainedFailure, recorded_version
from docml_assets.display import display, epoch_scores, epoch_text
from docml_assets.errors import EXPLAINED_ERRORS
from docml_assets.partitions import (
    BACKFILL_TAG,
    PROCESS_TAG,
    experiment_runs,
    operation_of,
    partition_tags,
    run_place,
    steps_of,
)
from docml_assets.runs.claims import CLAIM_DIGEST, Claim
from docml_assets.steps.snapshot import describe_folder, existing_claim, frozen_settings
from docml_assets.steps.work import Outcome, UnclaimedRun, Work
from docml_contract import log_lines
from docml_contract.manifests import CODE_VERSIONS
from docml_contract.names import EXPERIMENT_SNAPSHOT, RunPlace
from docml_contract.plain_text import plain, plain_line
from resources.jobs.interface import Listener
from resources.processes import this_process

RESOURCES = frozenset({"deployment", "store", "production", "labels", "jobs", "endpoints", "tracking"})
OWNERS = ["team:docml"]
SECONDS_BETWEEN_PROGRESS_LOGS = 10.0
# Lines of a job that are shown at once, and then a second: each is an event of Dagster, which takes some 20 ms to write.
SHOWN_LINES = 2_000
LINES_A_SECOND = 10.0

Context = dg.AssetExecutionContext | dg.AssetCheckExecutionContext
Results = Iterator[dg.MaterializeResult]
Body = Callable[[dg.AssetExecutionContext], Results]


def run_asset(
    name: str, *, deps: Sequence[Any] = (), group: str, kinds: set[str], description: str, **more: Any
) -> Callable[[Body], dg.AssetsDefinition]:
    """Decorates the body of an asset of a run; `more` goes to `dagster.asset`."""

    def decorate(body: Body) -> dg.AssetsDefinition:
        make = dg.asset(
            name=name,
            deps=list(deps),
            partitions_def=experiment_runs,
            group_name=group,
            kinds=kinds,
            description=description,
            owners=OWNERS,
            metadata=code_reference(body),
            code_version=CODE_VERSIONS[name],
            required_resource_keys=set(RESOURCES),
            output_required=False,
            **more,
        )

        @wraps(body)
        def explained_body(context: dg.AssetExecutionContext) -> Results:
            with explained():
                yield from _executed(context, body)

        return make(explained_body)

    return decorate


def code_reference(body: Body) -> dict[str, dg.CodeReferencesMetadataValue]:
    """Where an asset's body stands, for the UI's link to it."""
    code = body.__code__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # Dagster's version is pinned
        place = dg.LocalFileCodeReference(
            file_path=code.co_filename, line_number=code.co_firstlineno, label=body.__name__
        )
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[place])}


def _executed(context: dg.AssetExecutionContext, body: Body) -> Results:
    """The body's results; none where a backfill reaches a partition that is no run: all there are cannot be claimed."""
    try:
        yield from body(context)
    except UnclaimedRun as error:
        if BACKFILL_TAG not in context.run.tags:
            raise
        context.log.info(f"Skipped, since a backfill executes claimed runs and RUN_NUM only: {error}")


@contextmanager
def explained() -> Iterator[None]:
    """An error that explains itself fails the step with its sentence, and nothing else; others keep their stack."""
    try:
        yield
    except EXPLAINED_ERRORS as error:
        raise ExplainedFailure(plain(str(error))) from None


def materialize(
    context: dg.AssetExecutionContext,
    asset: str,
    step: Callable[[Work], Outcome | None],
    metadata: Callable[[Work, Outcome], Metadata],
    tags: Callable[[Outcome], Mapping[str, str]] = lambda outcome: {},
) -> Results:
    """The body of every asset: perform its step, and say what came of it. A step that gives None leaves no materialization."""
    display().started(asset)
    work = work_for(context, asset)
    outcome = step(work)
    if outcome is None:
        display().finished(asset, "not performed; nothing needs it")
        return
    display().finished(asset, outcome.why)
    said = {**metadata(work, outcome), **common(work, outcome)}
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(outcome.data_version),
        metadata=brief(said) if outcome.how != "made" and is_known(context, asset, outcome) else said,
        tags=dict(tags(outcome)),
    )


def is_known(context: Context, asset: str, outcome: Outcome) -> bool:
    """Whether the last materialization of this partition, as this instance has it, is of the same data."""
    return recorded_version(context.instance, asset, str(context.partition_key)) == outcome.data_version


def place_of(context: Context) -> RunPlace:
    """The run of the partition that is materialized or checked."""
    return run_place(context.partition_key)


def note_process(context: Context) -> bool:
    """Let the run carry the process that executes it: a run whose process is gone can be told from one that works on.

    Whether this was the first time: then nothing of this execution has been said yet.
    """
    mine = str(this_process())
    run = context.instance.get_run_by_id(context.run.run_id)
    if run is None or run.tags.get(PROCESS_TAG) == mine:
        return False
    context.instance.add_run_tags(run.run_id, {PROCESS_TAG: mine, **partition_tags(str(context.partition_key))})
    return True


def recorded_claim(context: Context) -> str | None:
    """The digest of the partition's claim as the event log has it since its snapshot was made; None where it has none."""
    found = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey(EXPERIMENT_SNAPSHOT), asset_partitions=[str(context.partition_key)]), limit=1
    )
    made = found.records[0].asset_materialization if found.records else None
    recorded = made.metadata.get(CLAIM_DIGEST) if made is not None else None
    return str(recorded.value) if recorded is not None else None


def say_changes(context: Context, claim: Claim) -> None:
    """A run keeps what it was claimed with: say so where its folder has changed since."""
    resources = context.op_execution_context.resources
    changes = describe_folder(resources.store, claim, resources.deployment.experiment_folder(claim.experiment))
    if changes:
        context.log.warning(changes)


def work_for(context: Context, asset: str) -> Work:
    """Everything that a step of this partition needs. UnclaimedRun if nobody claimed the run."""
    place = place_of(context)
    begun = note_process(context)
    resources = context.op_execution_context.resources
    claim = existing_claim(resources.store, place, recorded_claim(context))
    if begun:
        say_changes(context, claim)
    tags = context.run.tags
    return Work(
        place=place,
        settings=frozen_settings(claim, operation_of(tags)),
        functions_source=claim.functions_source,
        use_case=claim.use_case,
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
        performed=steps_of(tags),
    )


class DagsterReporter:
    """Says what a step does in Dagster's log, and on the terminal where there is one."""

    def __init__(self, context: Context, asset: str) -> None:
        self._context = context
        self._asset = asset
        self._progress: dict[str, tuple[float, float]] = {}  # what -> (begun, last logged)
        self.links: dict[str, str] = {}

    def say(self, text: str) -> None:
        """A sentence of the step, into Dagster's log and onto the display."""
        self._context.log.info(plain(text))
        display().said(self._asset, text)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Progress on the display at once, and now and then, with the time that is left, in the log."""
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
        """What listens to the step's job, or to the job of one of its models."""
        return JobListener(self._context, self._asset, model, self)


def is_link(url: str, environment: Mapping[str, str]) -> bool:
    """Whether what a job announced may become a link in the UI: https, or the deployment's own tracker."""
    try:
        parts, tracker = urlsplit(url), urlsplit(environment.get("WANDB_BASE_URL", ""))
    except ValueError:
        return False
    if not parts.hostname or parts.username is not None or not url.isprintable() or " " in url:
        return False
    is_trackers = (parts.scheme, parts.netloc) == (tracker.scheme, tracker.netloc) and parts.scheme == "http"
    return parts.scheme == "https" or is_trackers


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
        self._allowed = float(SHOWN_LINES)
        self._looked = time.monotonic()
        self._is_cut = False

    def line(self, host: str, text: str) -> None:
        """A log line of the job; the host is named where there are several. A job that prints without end is shown in part."""
        if not self._may_show():
            return
        with self._lock:
            self._hosts.add(host)
            where = f"{host}: " if len(self._hosts) > 1 else ""
        if not text.startswith(log_lines.METRICS_PREFIX):  # the job says the same in words, on the line before
            self._context.log.info(plain_line(f"{self._prefix}{where}{text}"))
        display().job_line(self._asset, self._model, text)

    def _may_show(self) -> bool:
        with self._lock:
            now = time.monotonic()
            self._allowed = min(SHOWN_LINES, self._allowed + (now - self._looked) * LINES_A_SECOND)
            self._looked = now
            if self._allowed >= 1:
                self._allowed -= 1
                return True
            was_cut, self._is_cut = self._is_cut, True
        if not was_cut:
            self.status(
                "the job prints more lines than can be shown here: from now on some are left out, and stand in its log alone"
            )
        return False

    def status(self, text: str) -> None:
        """Where the job stands, as a sentence of the step."""
        self._reporter.say(f"{self._prefix}{text}")

    def event(self, event: dict[str, Any]) -> None:
        """An event of the job's log: an epoch, progress, the address of its tracking, or facts."""
        kind = event["event"]
        if kind == log_lines.EPOCH:
            self._epoch(event)
        elif kind == log_lines.PROGRESS:
            unit = f" ({event['unit']})" if event.get("unit") else ""
            what = f"{self._prefix}{event.get('what', 'progress')}{unit}"
            self._reporter.progress(what, int(event.get("done", 0)), event.get("total"))
        elif kind == log_lines.TRACKING:
            url = str(event.get("url"))
            if is_link(url, self._context.op_execution_context.resources.deployment.environment):
                self._reporter.links[f"tracking{f' ({self._model})' if self._model else ''}"] = url
            self.status(f"tracked at {url}")

    def _epoch(self, event: dict[str, Any]) -> None:
        place = place_of(self._context)
        of_model = f" ({self._model})" if self._model else ""
        scores = {f"{name}{of_model}": value for name, value in epoch_scores(event).items()}
        self._context.op_execution_context.log_event(
            dg.AssetObservation(
                asset_key=self._asset,
                partition=str(self._context.partition_key),
                description=epoch_text(self._model, event),
                metadata=plotted(f"{place.experiment} run {place.number}", scores),
            )
        )
        display().epoch(self._asset, self._model, event)
