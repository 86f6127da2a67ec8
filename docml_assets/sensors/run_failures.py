"""Tells people that a run failed: which step, why, the last lines, where to look."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from docml_assets.partitions import EXPERIMENT, RUN
from docml_contract.plain_text import plain
from resources import secrets

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
        post(secrets.resolve(url, environment), message)


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
    experiment = run.tags.get(f"dagster/partition/{EXPERIMENT}")
    number = run.tags.get(f"dagster/partition/{RUN}")
    link = f"{ui_url.rstrip('/')}/runs/{run.run_id}"
    what = f"{experiment} run {number}" if experiment else f"job {run.job_name}"
    lines = plain(reason).strip().splitlines() or ["no reason was recorded"]
    text = f"{what} failed{f' in {step}' if step else ''}: {lines[0]}\n{link}"
    return {
        "text": text,
        "experiment": experiment,
        "run": int(number) if number and number.isdecimal() else None,
        "step": step,
        "reason": lines[0],
        "last_lines": lines[1:][-MAX_LINES:],
        "dagster_run_id": run.run_id,
        "link": link,
    }


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
