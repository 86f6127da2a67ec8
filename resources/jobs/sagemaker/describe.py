"""What SageMaker tells of a job: Describe's answers as JobState, summaries as trials, CloudWatch's log streams as lines."""

import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from docml_contract import hyperparameters as encoding
from docml_contract.hyperparameters import SearchRange
from resources.jobs.backend import Cause, Cursor, Job, JobState, LogLine, Status
from resources.jobs.sagemaker.errors import advice, cause_of
from resources.jobs.trials import Trial

NOUNS = {"processing": "ProcessingJob", "training": "TrainingJob", "tuning": "HyperParameterTuningJob"}
LOG_GROUPS = {
    "processing": "/aws/sagemaker/ProcessingJobs",
    "training": "/aws/sagemaker/TrainingJobs",
    "tuning": "/aws/sagemaker/TrainingJobs",
}
CONSOLE = {"processing": "processing-jobs", "training": "jobs", "tuning": "hyper-tuning-jobs"}
# New streams appear when a host starts and when a spot instance is replaced; in a tuning with every trial, the last of
# which may end before a later poll would look: there every poll lists.
POLLS_BETWEEN_STREAM_LISTS = 4


class Pacer:
    """Lets at most `rate` calls a second pass, for all threads of the process together. `rate` 0: no limit."""

    def __init__(self, rate: float) -> None:
        self._gap = 1.0 / rate if rate else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def turn(self) -> None:
        """Wait until it is one's turn."""
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + self._gap
        if at > now:
            time.sleep(at - now)


def where(account: str, region: str) -> str:
    """How records name an account and a region."""
    return f"account {account}, region {region}"


def where_of(arn: str) -> str:
    """The account and region of what has this ARN."""
    _, _, _, region, account, *_ = arn.split(":")
    return where(account, region)


def read_state(job: Job, answer: dict[str, Any], children: Callable[[], list[dict[str, Any]]]) -> JobState:
    """Describe's answer. `children` lists a tuning's trials, and is asked only when it has ended."""
    noun = NOUNS[job.spec.kind]
    status: Status = {"Deleting": "Stopping", "DeleteFailed": "Failed"}.get(
        answer[f"{noun}Status"], answer[f"{noun}Status"]
    )
    began, ended = _times(job, answer)
    seconds = (ended - began).total_seconds() if began and ended else 0.0
    cause, reason = _why(job, status, answer, seconds)
    billable: float | None = None
    if status in ("Completed", "Failed", "Stopped"):
        billable = _billable(job, answer, seconds, children)
    return JobState(
        status=status,
        phases=_phases(job, answer, status),
        reason=reason,
        cause=cause,
        started_at=began.isoformat(timespec="seconds") if began else "",
        ended_at=ended.isoformat(timespec="seconds") if ended else "",
        seconds=seconds,
        billable_seconds=billable,
    )


def _times(job: Job, answer: dict[str, Any]) -> tuple[datetime | None, datetime | None]:
    if job.spec.kind == "tuning":
        return answer.get("CreationTime"), answer.get("HyperParameterTuningEndTime")
    noun = "Processing" if job.spec.kind == "processing" else "Training"
    return answer.get(f"{noun}StartTime"), answer.get(f"{noun}EndTime")


def _why(job: Job, status: Status, answer: dict[str, Any], seconds: float) -> tuple[Cause, str]:
    """(cause, reason) of an end without success."""
    if status == "Stopped":
        secondary = answer.get("SecondaryStatus", "")
        limit = job.spec.compute.max_runtime_seconds
        if secondary in ("MaxRuntimeExceeded", "MaxWaitTimeExceeded") or (
            job.spec.kind == "processing" and seconds >= limit
        ):
            setting = "MAX_WAIT_SECONDS" if secondary == "MaxWaitTimeExceeded" else "MAX_RUNTIME_SECONDS"
            name = secondary or "MaxRuntimeExceeded"
            return "time", f"{name}: stopped at its time limit ({limit} s of running): raise {setting} of the step"
        return "stopped", "stopped: by someone, or with its Dagster run"
    if status != "Failed":
        return "work", ""
    reason = str(answer.get("FailureReason", "it gave no reason"))
    own = answer.get("ExitMessage")
    cause = cause_of(reason)
    if own:
        return cause, str(own)
    # AlgorithmError carries what the container left in its failure file; ClientError is the service's own.
    inner = re.sub(r"^AlgorithmError: (.*?),? exit code: \d+\s*$", r"\1", reason, flags=re.DOTALL)
    if inner != reason and inner.strip():
        return cause, inner
    return cause, advice(reason)


def _phases(job: Job, answer: dict[str, Any], status: Status) -> tuple[str, ...]:
    if job.spec.kind == "training":
        transitions = answer.get("SecondaryStatusTransitions", [])
        return tuple(": ".join(filter(None, (t["Status"], t.get("StatusMessage", "")))) for t in transitions)
    if job.spec.kind == "tuning" and status == "InProgress":
        counters = answer.get("TrainingJobStatusCounters", {})
        return ("InProgress", *(f"trial {n + 1} completed" for n in range(counters.get("Completed", 0))))
    return ("InProgress",) if status == "InProgress" else ("InProgress", status)


def _billable(job: Job, answer: dict[str, Any], seconds: float, children: Callable[[], list[dict[str, Any]]]) -> float:
    """Seconds of one host that are paid for; for a tuning, of all its trials."""
    if job.spec.kind == "training":
        return float(answer.get("BillableTimeInSeconds", seconds))
    if job.spec.kind == "processing":
        return seconds
    times = [(child.get("TrainingStartTime"), child.get("TrainingEndTime")) for child in children()]
    return sum((end - start).total_seconds() for start, end in times if start and end)


def read_trial(number: int, child: dict[str, Any], ranges: Mapping[str, SearchRange]) -> Trial:
    """A trial from its summary."""
    metric = child.get("FinalHyperParameterTuningJobObjectiveMetric")
    start: datetime | None = child.get("TrainingStartTime")
    end: datetime | None = child.get("TrainingEndTime")
    status = child["TrainingJobStatus"]
    return Trial(
        number=number,
        job=child["TrainingJobName"],
        values=encoding.decode_tuned(child.get("TunedHyperParameters", {}), ranges),
        objective=float(metric["Value"]) if metric else None,
        seconds=(end - start).total_seconds() if start and end else None,
        status=status if status in ("Completed", "Failed", "Stopped") else "InProgress",
        reason=child.get("FailureReason", ""),
    )


def read_logs(job: Job, cursor: Cursor, ask: Callable[..., dict[str, Any]]) -> list[LogLine]:
    """New lines of all hosts (or trials). `ask(operation, **request)` calls CloudWatch Logs, {} where nothing exists yet.

    `cursor` keeps the streams with their forward tokens. An answer without events ends a stream's turn: CloudWatch may
    answer empty pages, and goes on from the new token next time.
    """
    group = LOG_GROUPS[job.spec.kind]
    streams: dict[str, str | None] = cursor.setdefault("streams", {})
    polls = cursor["polls"] = cursor.get("polls", -1) + 1
    few = len(streams) < job.spec.compute.instance_count
    if few or job.spec.kind == "tuning" or polls % POLLS_BETWEEN_STREAM_LISTS == 0:
        for name in _streams(job, group, ask):
            streams.setdefault(name, None)
    lines = []
    for stream, token in streams.items():
        while True:
            more = {"nextToken": token} if token else {}
            answer = ask("get_log_events", logGroupName=group, logStreamName=stream, startFromHead=True, **more)
            events = answer.get("events", [])
            token = answer.get("nextForwardToken", token)
            lines += [LogLine(_host(job, stream), event["message"]) for event in events]
            streams[stream] = token
            if not events:
                break
    return lines


def _streams(job: Job, group: str, ask: Callable[..., dict[str, Any]]) -> list[str]:
    # A training's streams are <job>/algo-1-<time>; a trial's job is named <tuning job>-001-<hash>.
    prefix = f"{job.name}-" if job.spec.kind == "tuning" else f"{job.name}/"
    names: list[str] = []
    more: dict[str, str] = {}
    while True:
        answer = ask("describe_log_streams", logGroupName=group, logStreamNamePrefix=prefix, **more)
        names += [stream["logStreamName"] for stream in answer.get("logStreams", [])]
        if "nextToken" not in answer:
            return names
        more = {"nextToken": answer["nextToken"]}


def _host(job: Job, stream: str) -> str:
    if job.spec.kind == "tuning":
        return f"trial-{stream.removeprefix(job.name).lstrip('-').split('-', 1)[0]}"
    found = re.search(r"/(algo-\d+)", stream)
    return found.group(1) if found else stream


def links(job: Job, region: str) -> dict[str, str]:
    """Pages of the AWS console."""
    console = f"https://{region}.console.aws.amazon.com"
    group = LOG_GROUPS[job.spec.kind].replace("/", "$252F")
    return {
        "job": f"{console}/sagemaker/home?region={region}#/{CONSOLE[job.spec.kind]}/{job.name}",
        "log": f"{console}/cloudwatch/home?region={region}#logsV2:log-groups/log-group/{group}"
        f"$3FlogStreamNameFilter$3D{job.name}",
    }
