"""Describe's answers become states, CloudWatch's streams lines: complete, in order, each once."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from resources.jobs.backend import Cursor, Job
from resources.jobs.sagemaker.describe import read_logs, read_state
from tests.contracts.jobs_contract import RATES, Tuning, preparation, training, tuning
from tests.servers.sagemaker.faults import Faults
from tests.servers.sagemaker.neighbours import CloudWatchLogs
from tests.servers.sagemaker.server import ServiceError

START = datetime(2026, 1, 1, tzinfo=UTC)
TRAINING = Job(training(), 1, "train-1")
PROCESSING = Job(preparation(), 1, "prepare-1")
TUNING = Job(tuning(Tuning(ranges={"learning_rate": RATES})), 1, "tune-1")


def trained(status: str, **more: Any) -> dict[str, Any]:
    return {
        "TrainingJobStatus": status,
        "SecondaryStatus": status,
        "TrainingStartTime": START,
        "TrainingEndTime": START + timedelta(seconds=600),
        **more,
    }


def test_a_completed_training() -> None:
    transitions = [{"Status": "Starting", "StatusMessage": "Preparing"}, {"Status": "Training"}]
    answer = trained("Completed", SecondaryStatusTransitions=transitions, BillableTimeInSeconds=540)
    state = read_state(TRAINING, answer, list)
    assert (state.status, state.seconds, state.billable_seconds) == ("Completed", 600, 540)
    assert state.phases == ("Starting: Preparing", "Training")
    assert state.started_at == "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("answer", "cause", "reason"),
    [
        (trained("Failed", FailureReason="AlgorithmError: loss is NaN, exit code: 1"), "work", "loss is NaN"),
        (trained("Failed", FailureReason="AlgorithmError: , exit code: 1"), "work", "AlgorithmError: , exit code: 1"),
        (trained("Failed", FailureReason="CapacityError: Unable to provision requested ML compute capacity"), "capacity", ""),
        (trained("Failed", FailureReason="InternalServerError: We encountered an internal error"), "lost", ""),
        # What the container says may quote anything.
        (trained("Failed", FailureReason="AlgorithmError: no CapacityError at all, exit code: 1"), "work", "no CapacityError"),
        (trained("Failed", FailureReason="AlgorithmError: HTTP 500 InternalServerError, exit code: 1"), "work", "HTTP 500"),
        (trained("Failed", FailureReason="ClientError: Unable to provision x: Internal Error"), "work", "Unable"),
        (trained("Stopped", SecondaryStatus="MaxRuntimeExceeded"), "time", "MAX_RUNTIME_SECONDS"),
        (trained("Stopped", SecondaryStatus="MaxWaitTimeExceeded"), "time", "MAX_WAIT_SECONDS"),
        (trained("Stopped"), "stopped", "stopped"),
        (trained("Failed", FailureReason="ClientError: Cannot pull image docml:1"), "work", "DOCKER_IMAGE"),
    ],
)  # fmt: skip
def test_why_a_training_ended(answer: dict[str, Any], cause: str, reason: str) -> None:
    state = read_state(TRAINING, answer, list)
    assert state.cause == cause
    assert reason in state.reason


def test_a_processing_job_tells_its_exit_message_and_its_time_limit() -> None:
    answer = {
        "ProcessingJobStatus": "Failed",
        "FailureReason": "AlgorithmError: See job logs for more information, exit code: 1",
        "ExitMessage": "encode_data failed for 3 documents",
        "ProcessingStartTime": START,
        "ProcessingEndTime": START + timedelta(seconds=600),
    }
    assert read_state(PROCESSING, answer, list).reason == "encode_data failed for 3 documents"
    stopped = {**answer, "ProcessingJobStatus": "Stopped"}
    assert read_state(PROCESSING, stopped, list).cause == "time"
    early = {**stopped, "ProcessingEndTime": START + timedelta(seconds=30)}
    assert read_state(PROCESSING, early, list).cause == "stopped"


def test_a_tunings_trials_are_billed_together_and_listed_only_at_its_end() -> None:
    child = {"TrainingStartTime": START, "TrainingEndTime": START + timedelta(seconds=60)}
    asked: list[bool] = []

    def children() -> list[dict[str, Any]]:
        asked.append(True)
        return [child, child, {}]

    answer = {"HyperParameterTuningJobStatus": "InProgress", "TrainingJobStatusCounters": {"Completed": 2}}
    state = read_state(TUNING, answer, children)
    assert state.phases == ("InProgress", "trial 1 completed", "trial 2 completed")
    assert not asked
    answer = {**answer, "HyperParameterTuningJobStatus": "Completed", "CreationTime": START}
    assert read_state(TUNING, answer, children).billable_seconds == 120


class Logs:
    """CloudWatch with pages of two events."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.now = 0.0
        self.service = CloudWatchLogs(self.faults, lambda: self.now, page=2)

    def ask(self, operation: str, **request: Any) -> dict[str, Any]:
        name = "".join(word.capitalize() for word in operation.split("_"))
        try:
            return self.service.call(name, request)
        except ServiceError:
            return {}

    def write(self, stream: str, *lines: str) -> None:
        for line in lines:
            self.service.write("/aws/sagemaker/TrainingJobs", stream, line)


def test_lines_of_all_hosts_come_once_whatever_the_pages_and_lags() -> None:
    logs = Logs()
    cursor: Cursor = {}
    assert read_logs(TRAINING, cursor, logs.ask) == []
    logs.write("train-1/algo-1-99", "a", "b", "c", "d", "e")
    logs.write("train-1/algo-2-99", "x")
    logs.write("train-10/algo-1-99", "of another job")
    found = read_logs(TRAINING, cursor, logs.ask)
    assert [(line.host, line.text) for line in found] == [
        *(("algo-1", letter) for letter in "abcde"),
        ("algo-2", "x"),
    ]
    assert read_logs(TRAINING, cursor, logs.ask) == []
    logs.faults.log_lag = 5
    logs.write("train-1/algo-1-99", "late")
    assert read_logs(TRAINING, cursor, logs.ask) == []
    logs.now = 6.0
    assert [line.text for line in read_logs(TRAINING, cursor, logs.ask)] == ["late"]
    logs.write("train-1/algo-1-200", "after a spot interruption")
    logs.now = 20.0
    seen = [line.text for _ in range(5) for line in read_logs(TRAINING, cursor, logs.ask)]
    assert seen == ["after a spot interruption"]


def test_a_tunings_lines_name_their_trial() -> None:
    logs = Logs()
    logs.write("tune-1-001-ab12/algo-1-99", "first")
    logs.write("tune-1-002-cd34/algo-1-99", "second")
    found = read_logs(TUNING, {}, logs.ask)
    assert [(line.host, line.text) for line in found] == [("trial-001", "first"), ("trial-002", "second")]
