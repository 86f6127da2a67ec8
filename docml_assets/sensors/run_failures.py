"""Runs that ended badly: people are told, jobs that nobody waits for are stopped, and runs that nobody executes are ended."""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from docml_assets.history import forget_unevaluated, shrink_ended_runs
from docml_assets.partitions import PARTITION_TAG, PROCESS_TAG
from docml_contract.names import RunPlace
from docml_contract.plain_text import plain
from resources.aws import resolve
from resources.jobs.interface import Jobs, Orphan
from resources.processes import Process

DEFAULT_UI = "http://127.0.0.1:3000"
MAX_LINES = 20
ATTEMPTS = 3
TIMEOUT_SECONDS = 5


@dg.run_failure_sensor(
    name="run_failure_sensor",
    description="Posts every failed run to DOCML_WEBHOOK_URL: step, reason, last lines, link. Does nothing where it is not set.",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
)
def run_failure_sensor(context: dg.RunFailureSensorContext, deployment: dg.ResourceParam[Any]) -> None:
    """The thin Dagster side of `failure_message` and `post`."""
    environment: Mapping[str, str] = deployment.environment
    message = failure_message(
        context.dagster_run,
        context.failure_event.message or "",
        context.get_step_failure_events(),
        environment.get("DOCML_UI_URL") or DEFAULT_UI,
    )
    context.log.info(message["text"])
    url = environment.get("DOCML_WEBHOOK_URL")
    if url:
        post(resolve(url, environment), message)


def failure_message(
    run: dg.DagsterRun, reason: str, step_failures: Sequence[dg.DagsterEvent], ui_url: str
) -> dict[str, Any]:
    """The JSON that is posted; `text` alone suits chat webhooks, the other fields suit programs.

    A step's own reason beats the run's, which only says that some steps failed.
    """
    step = None
    for event in step_failures:
        data = event.step_failure_data
        step = event.step_key
        if data.user_failure_data and data.user_failure_data.description:
            reason = data.user_failure_data.description
        elif data.error:
            reason = _root_cause(data.error)
        break
    experiment, _, number = run.tags.get(PARTITION_TAG, "").partition("|")
    link = f"{ui_url.rstrip('/')}/runs/{run.run_id}"
    what = f"{experiment} run {number}" if experiment else f"job {run.job_name}"
    lines = plain(reason).strip().splitlines() or ["no reason was recorded"]
    text = f"{what} failed{f' in {step}' if step else ''}: {_as_chat_text(lines[0])}\n{link}"
    return {
        "text": text,
        "experiment": experiment or None,
        "run": int(number) if number.isdecimal() else None,
        "step": step,
        "reason": lines[0],
        "last_lines": lines[1:][-MAX_LINES:],
        "dagster_run_id": run.run_id,
        "link": link,
    }


def _as_chat_text(text: str) -> str:
    """A reason, which may quote anybody, without a meaning of its own in a chat: it calls nobody and hides no link."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, entity)
    return re.sub(r"@(?=(all|channel|everyone|here)\b)", "@ ", text).replace("](", "] (")


def _root_cause(error: Any) -> str:
    """The message of the innermost error that Dagster wrapped, without its class's module path."""
    while error.cause is not None:
        error = error.cause
    text: str = error.message
    head, separator, rest = text.partition(": ")
    return rest if separator and " " not in head else text


class WebhookFailed(Exception):
    """The webhook did not take the message."""


def post(url: str, message: Mapping[str, Any], *, sleep: Any = time.sleep) -> None:
    """POST the message as JSON; three attempts, since Dagster does not run a failure sensor twice for one run.

    WebhookFailed names the answer, never the URL: it may hold a token.
    """
    request = urllib.request.Request(
        url, data=json.dumps(message).encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    trouble = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            sleep(2.0**attempt)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
                return
        except urllib.error.HTTPError as error:
            trouble = f"HTTP {error.code} {error.reason}"
            error.close()
            if error.code < 500 and error.code != 429:
                break
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            trouble = str(getattr(error, "reason", error))
    raise WebhookFailed(f"DOCML_WEBHOOK_URL did not take the message ({trouble}): check the URL and its token")


RECENT_SECONDS = 3600.0  # what a tick looks back on: older ones are left to `docml gc`
# `docml run` may be killed between making its Dagster run and beginning it.
UNFINISHED = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep did."""

    ended_runs: tuple[str, ...]
    stopped_jobs: tuple[Orphan, ...]
    damage: tuple[str, ...] = ()  # what could not be read

    def __bool__(self) -> bool:
        return bool(self.ended_runs or self.stopped_jobs or self.damage)

    def __str__(self) -> str:
        runs = [f"run {run} marked failed: its process is gone" for run in self.ended_runs]
        jobs = [f"job {orphan.name} stopped: {orphan.reason}" for orphan in self.stopped_jobs]
        left = [
            f"a job is left alone, since what the store knows of it cannot be read ({text}): remove that file once nobody runs the job"
            for text in self.damage
        ]
        return "; ".join([*runs, *jobs, *left]) or "no job without a waiting run, no run without a process"


@dg.sensor(
    name="orphaned_jobs_sensor",
    description="Stops jobs whose run was canceled or whose lease lapsed 15 minutes ago, and marks runs failed whose process was killed, so that they can "
    "be re-executed. Keeps checks that such runs did not come to from counting as failed, and the databases of ended runs small. Starts nothing.",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=60,
)
def orphaned_jobs_sensor(context: dg.SensorEvaluationContext, jobs: dg.ResourceParam[Any]) -> dg.SkipReason:
    """The thin Dagster side of `sweep`."""
    swept = sweep(context.instance, jobs)
    forget_unevaluated(context.instance, RECENT_SECONDS)
    shrink_ended_runs(context.instance, Path(context.instance.root_directory), RECENT_SECONDS)
    if swept:
        context.log.warning(str(swept))
    return dg.SkipReason(str(swept))


@dg.sensor(
    name="orphaned_endpoints_sensor",
    description="Takes down endpoints that have expired, that were given up half-way, or that no record knows; "
    "restarts those of this machine that have died.",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=300,
)
def orphaned_endpoints_sensor(context: dg.SensorEvaluationContext, endpoints: dg.ResourceParam[Any]) -> dg.SkipReason:
    """The thin Dagster side of the endpoints' own sweep."""
    swept = endpoints.sweep()
    for each in swept:
        context.log.warning(str(each))
    for name, reason in endpoints.records.damaged().items():
        context.log.warning(f"endpoint {name} is left alone, since its record cannot be read: {reason}")
    standing = endpoints.list_endpoints()
    return dg.SkipReason(f"{sum(not each.stands for each in swept)} endpoints taken down, {len(standing)} known")


def sweep(instance: dg.DagsterInstance, jobs: Jobs, *, spared: RunPlace | None = None) -> SweepResult:
    """End runs whose process is gone, then stop jobs for which nobody comes back; then end the runs that had waited for those.

    spared: the run that the caller is about to perform, which attaches to its jobs.
    """
    ended = []
    for run in runs_without_process(instance):
        instance.report_run_failed(
            run, "The process that executed this run is gone (killed, or its machine restarted)."
        )
        ended.append(run.run_id)
    damage: list[str] = []
    found = jobs.orphans(was_canceled(instance), damage)
    orphans = [orphan for orphan in found if RunPlace(orphan.experiment, orphan.run) != spared]
    for orphan in orphans:
        jobs.stop(orphan)
        holder = instance.get_run_by_id(orphan.holder)
        if holder is not None and holder.status == dg.DagsterRunStatus.STARTED:
            instance.report_run_failed(
                holder,
                f"Nobody waits for its job {orphan.name} any more ({orphan.reason}); the job was stopped.",
            )
            ended.append(holder.run_id)
    return SweepResult(tuple(ended), tuple(orphans), tuple(damage))


def runs_without_process(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Unfinished runs whose process is gone: Dagster's default launcher has no health check, they would stay STARTED for ever."""
    unfinished = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return [run for run in unfinished if PROCESS_TAG in run.tags and is_gone(run.tags[PROCESS_TAG]) and not _waits(run)]


def _waits(run: dg.DagsterRun) -> bool:
    """Whether a run has the tag of another one's process, of which it is a re-execution that has not begun."""
    return run.status == dg.DagsterRunStatus.NOT_STARTED and run.parent_run_id is not None


def is_gone(process: str) -> bool:
    """Whether the process of a tag ended. False where that cannot be known: it is another host's, or another container's."""
    found = Process.parse(process)
    # An older container of the same name that goes on keeps its jobs all the same: it renews their leases.
    ended_with_its_machine = found.is_of_another_boot or found.is_of_an_earlier_container
    return ended_with_its_machine or (found.is_visible and not found.is_alive)


def was_canceled(instance: dg.DagsterInstance) -> Callable[[str], bool]:
    """Whether a Dagster run was canceled. A run that this instance does not know may belong to another one: its lease decides."""

    def canceled(run_id: str) -> bool:
        run = instance.get_run_by_id(run_id)
        return run is not None and run.status == dg.DagsterRunStatus.CANCELED

    return canceled
