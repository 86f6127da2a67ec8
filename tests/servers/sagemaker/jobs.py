"""A job as the service keeps it: the request, a status with its transitions, and the answer of Describe."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ACCOUNT = "123456789012"
REGION = "eu-west-1"
TERMINAL = ("Completed", "Failed", "Stopped")


@dataclass(frozen=True)
class Kind:
    """How the API names things for one kind of job."""

    name: str  # training-job
    noun: str  # TrainingJob
    log_group: str

    def arn(self, job: str, account: str = ACCOUNT, region: str = REGION) -> str:
        return f"arn:aws:sagemaker:{region}:{account}:{self.name}/{job}"


TRAINING = Kind("training-job", "TrainingJob", "/aws/sagemaker/TrainingJobs")
PROCESSING = Kind("processing-job", "ProcessingJob", "/aws/sagemaker/ProcessingJobs")
TUNING = Kind("hyper-parameter-tuning-job", "HyperParameterTuningJob", "/aws/sagemaker/TrainingJobs")
KINDS = {kind.noun: kind for kind in (TRAINING, PROCESSING, TUNING)}


@dataclass
class Job:
    """One job. Only its runtime changes its status, through `enter` and `finish`."""

    kind: Kind
    name: str
    request: dict[str, Any]
    clock: Callable[[], float]
    tags: list[dict[str, str]]
    parent: "Job | None" = None
    status: str = "InProgress"
    secondary: str = "Starting"
    transitions: list[dict[str, Any]] = field(default_factory=list)
    created: float = 0.0
    modified: float = 0.0
    started: float | None = None
    ended: float | None = None
    failure_reason: str | None = None
    exit_message: str | None = None
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    children: list["Job"] = field(default_factory=list)
    tuned: dict[str, str] = field(default_factory=dict)
    stop_requested: threading.Event = field(default_factory=threading.Event)
    unseen_describes: int = 0
    account: str = ACCOUNT
    region: str = REGION
    artifacts: str = "output/model"  # below the output path and the job's name, where a training's files go
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.created = self.modified = self.clock()
        self.enter("Starting", "Preparing the instances")

    @property
    def arn(self) -> str:
        return self.kind.arn(self.name, self.account, self.region)

    @property
    def artifacts_uri(self) -> str:
        """Where a training's uncompressed output goes."""
        return f"{self.request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.name}/{self.artifacts}"

    @property
    def done(self) -> bool:
        return self.status in TERMINAL

    def enter(self, secondary: str, message: str = "") -> None:
        """The next secondary status."""
        with self.lock:
            now = self.clock()
            if self.transitions:
                self.transitions[-1]["EndTime"] = now
            self.transitions.append({"Status": secondary, "StartTime": now, "StatusMessage": message})
            self.secondary, self.modified = secondary, now
            if secondary == "Training" and self.started is None:
                self.started = now

    def ask_to_stop(self) -> None:
        with self.lock:
            if self.status == "InProgress":
                self.status = "Stopping"
                self.enter("Stopping", "Stopping the job")
            self.stop_requested.set()

    def finish(self, status: str, secondary: str | None = None, reason: str | None = None) -> None:
        """The end; a second one is ignored."""
        with self.lock:
            if self.done:
                return
            self.enter(secondary or status, reason or "")
            self.status = status
            self.ended = self.modified
            self.failure_reason = reason[:1024] if reason else None

    def seconds(self) -> int:
        """Billable seconds so far."""
        if self.started is None:
            return 0
        return int((self.ended or self.clock()) - self.started)


def describe(job: Job, skew: float) -> dict[str, Any]:
    """The answer of Describe<Noun>; timestamps shifted by `skew` seconds."""
    with job.lock:
        noun = job.kind.noun
        answer = {key: value for key, value in job.request.items() if key != "Tags"}
        answer |= {
            f"{noun}Name": job.name,
            f"{noun}Arn": job.arn,
            f"{noun}Status": job.status,
            "CreationTime": job.created + skew,
            "LastModifiedTime": job.modified + skew,
        }
        if job.failure_reason:
            answer["FailureReason"] = job.failure_reason
        if job.kind is PROCESSING:
            answer |= _optional(ProcessingStartTime=job.started, ProcessingEndTime=job.ended, skew=skew)
            if job.exit_message:
                answer["ExitMessage"] = job.exit_message
        elif job.kind is TRAINING:
            answer |= _describe_training(job, skew)
        else:
            answer |= _describe_tuning(job, skew)
        return answer


def _optional(*, skew: float, **times: float | None) -> dict[str, float]:
    return {name: value + skew for name, value in times.items() if value is not None}


def _describe_training(job: Job, skew: float) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "SecondaryStatus": job.secondary,
        "SecondaryStatusTransitions": [
            {key: value + skew if key.endswith("Time") else value for key, value in transition.items()}
            for transition in job.transitions
        ],
        "TrainingTimeInSeconds": job.seconds(),
        "BillableTimeInSeconds": job.seconds(),
        "FinalMetricDataList": [
            {"MetricName": name, "Value": value, "Timestamp": at + skew} for name, (value, at) in job.metrics.items()
        ],
    }
    if job.parent:
        answer["TuningJobArn"] = job.parent.arn
    if job.status == "Completed":
        uncompressed = job.request["OutputDataConfig"].get("CompressionType") == "NONE"
        answer["ModelArtifacts"] = {
            "S3ModelArtifacts": f"{job.artifacts_uri}/" if uncompressed else f"{job.artifacts_uri}.tar.gz"
        }
    return answer | _optional(TrainingStartTime=job.started, TrainingEndTime=job.ended, skew=skew)


def objective(parent: Job) -> tuple[str, str]:
    """(type, metric name) that a tuning job optimizes."""
    wanted = parent.request["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]
    return wanted["Type"], wanted["MetricName"]


def summarize_child(child: Job, skew: float) -> dict[str, Any]:
    """A HyperParameterTrainingJobSummary."""
    assert child.parent is not None
    type_, metric = objective(child.parent)
    summary: dict[str, Any] = {
        "TrainingJobName": child.name,
        "TrainingJobArn": child.arn,
        "CreationTime": child.created + skew,
        "TrainingJobStatus": child.status,
        "TunedHyperParameters": child.tuned,
    } | _optional(TrainingStartTime=child.started, TrainingEndTime=child.ended, skew=skew)
    if child.failure_reason:
        summary["FailureReason"] = child.failure_reason
    if metric in child.metrics:
        summary["FinalHyperParameterTuningJobObjectiveMetric"] = {
            "Type": type_,
            "MetricName": metric,
            "Value": child.metrics[metric][0],
        }
        summary["ObjectiveStatus"] = "Succeeded"
    else:
        summary["ObjectiveStatus"] = "Failed" if child.done else "Pending"
    return summary


def best_child(parent: Job) -> Job | None:
    """The completed child with the best objective (the latest value that it emitted)."""
    type_, metric = objective(parent)
    scored = [child for child in parent.children if child.status == "Completed" and metric in child.metrics]
    if not scored:
        return None
    sign = 1 if type_ == "Maximize" else -1
    return max(scored, key=lambda child: sign * child.metrics[metric][0])


def _describe_tuning(job: Job, skew: float) -> dict[str, Any]:
    statuses = [child.status for child in job.children]
    with_objective = sum(1 for child in job.children if objective(job)[1] in child.metrics)
    answer: dict[str, Any] = {
        "TrainingJobStatusCounters": {
            "Completed": statuses.count("Completed"),
            "InProgress": statuses.count("InProgress") + statuses.count("Stopping"),
            "RetryableError": 0,
            "NonRetryableError": statuses.count("Failed"),
            "Stopped": statuses.count("Stopped"),
        },
        "ObjectiveStatusCounters": {
            "Succeeded": with_objective,
            "Pending": 0,
            "Failed": len(job.children) - with_objective,
        },
    }
    best = best_child(job)
    if best:
        answer["BestTrainingJob"] = summarize_child(best, skew)
    return answer | _optional(HyperParameterTuningEndTime=job.ended, skew=skew)
