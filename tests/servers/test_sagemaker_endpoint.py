"""The local SageMaker endpoint answers as the service does, to boto3, in process and over HTTP."""

from collections.abc import Iterator

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError

from tests.servers.sagemaker.faults import Faults
from tests.servers.sagemaker.neighbours import CloudWatchLogs
from tests.servers.sagemaker.scripted import ManualClock, ScriptedRuntime
from tests.servers.sagemaker.server import LocalEndpoint, connect, serve
from tests.servers.sagemaker.service import SageMaker

CREDENTIALS = {"region_name": "eu-west-1", "aws_access_key_id": "x", "aws_secret_access_key": "x"}
TRAINING = {
    "TrainingJobName": "docml-training-1",
    "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
    "RoleArn": "arn:aws:iam::123456789012:role/docml",
    "OutputDataConfig": {"S3OutputPath": "s3://bucket/out", "CompressionType": "NONE"},
    "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    "Tags": [{"Key": "docml:spec", "Value": "abc"}],
}


class Bench:
    """A scripted endpoint and a client that is connected to it inside the process."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.faults = Faults()
        self.runtime = ScriptedRuntime(self.faults, self.clock)
        service = SageMaker(self.runtime, faults=self.faults, clock=self.clock, images=frozenset({"image"}))
        self.runtime.service = service
        self.endpoint = LocalEndpoint(service, CloudWatchLogs(self.faults, self.clock))
        session = boto3.session.Session(**CREDENTIALS)
        connect(session, self.endpoint)
        self.client = session.client("sagemaker", config=Config(retries={"total_max_attempts": 1}))

    def run(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        self.runtime.advance()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def code(error: pytest.ExceptionInfo[ClientError]) -> str:
    return error.value.response["Error"]["Code"]


def test_a_job_starts_runs_and_completes(bench: Bench) -> None:
    bench.client.create_training_job(**TRAINING)
    bench.run(15)
    assert bench.client.describe_training_job(TrainingJobName="docml-training-1")["SecondaryStatus"] == "Training"
    bench.run(15)
    answer = bench.client.describe_training_job(TrainingJobName="docml-training-1")
    assert answer["TrainingJobStatus"] == "Completed"
    assert answer["ModelArtifacts"]["S3ModelArtifacts"] == "s3://bucket/out/docml-training-1/output/model/"
    assert [t["Status"] for t in answer["SecondaryStatusTransitions"]] == ["Starting", "Training", "Completed"]


def test_a_name_is_used_once(bench: Bench) -> None:
    bench.client.create_training_job(**TRAINING)
    with pytest.raises(ClientError) as error:
        bench.client.create_training_job(**TRAINING)
    assert code(error) == "ResourceInUse"
    arn = bench.client.describe_training_job(TrainingJobName="docml-training-1")["TrainingJobArn"]
    assert bench.client.list_tags(ResourceArn=arn)["Tags"] == TRAINING["Tags"]


def test_requests_are_validated_as_botocore_does_not(bench: Bench) -> None:
    with pytest.raises(ClientError, match=r"hyperParameters.*less than or equal to 2500") as error:
        bench.client.create_training_job(**TRAINING, HyperParameters={"text": "x" * 2501})
    assert code(error) == "ValidationException"


def test_a_missing_job_and_a_finished_one_are_validation_errors(bench: Bench) -> None:
    with pytest.raises(ClientError, match=r"Requested resource not found\."):
        bench.client.describe_training_job(TrainingJobName="nobody")
    bench.client.create_training_job(**TRAINING)
    bench.client.stop_training_job(TrainingJobName="docml-training-1")
    bench.run(1)
    assert bench.client.describe_training_job(TrainingJobName="docml-training-1")["TrainingJobStatus"] == "Stopped"
    with pytest.raises(ClientError, match="is in status Stopped"):
        bench.client.stop_training_job(TrainingJobName="docml-training-1")


def test_a_lost_response_leaves_the_job_behind(bench: Bench) -> None:
    bench.faults.order("CreateTrainingJob", "lost_response")
    with pytest.raises(ConnectionClosedError):
        bench.client.create_training_job(**TRAINING)
    assert bench.client.describe_training_job(TrainingJobName="docml-training-1")["TrainingJobStatus"] == "InProgress"


def test_ordered_faults_happen_as_often_as_ordered(bench: Bench) -> None:
    bench.faults.order("*", "throttle", times=2)
    for _ in range(2):
        with pytest.raises(ClientError) as error:
            bench.client.list_training_jobs()
        assert code(error) == "ThrottlingException"
    assert bench.client.list_training_jobs()["TrainingJobSummaries"] == []
    bench.faults.order_job("capacity")
    bench.client.create_training_job(**TRAINING)
    answer = bench.client.describe_training_job(TrainingJobName="docml-training-1")
    assert answer["TrainingJobStatus"] == "Failed"
    assert answer["FailureReason"].startswith("CapacityError")


def test_describe_lags_behind_create(bench: Bench) -> None:
    bench.faults.describe_lag = 1
    bench.client.create_training_job(**TRAINING)
    with pytest.raises(ClientError, match="Requested resource not found"):
        bench.client.describe_training_job(TrainingJobName="docml-training-1")
    assert bench.client.describe_training_job(TrainingJobName="docml-training-1")["TrainingJobStatus"] == "InProgress"


def test_tuning_runs_children_and_names_the_best(bench: Bench) -> None:
    definition = {key: value for key, value in TRAINING.items() if key not in ("TrainingJobName", "Tags")}
    bench.client.create_hyper_parameter_tuning_job(
        HyperParameterTuningJobName="docml-tuning-1",
        HyperParameterTuningJobConfig={
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "valid_f1"},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": 3, "MaxParallelTrainingJobs": 2},
            "ParameterRanges": {
                "ContinuousParameterRanges": [
                    {"Name": "learning_rate", "MinValue": "1e-6", "MaxValue": "1e-4", "ScalingType": "Logarithmic"}
                ]
            },
        },
        TrainingJobDefinition=definition,
    )
    for _ in range(8):
        bench.run(15)
    answer = bench.client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName="docml-tuning-1")
    assert answer["HyperParameterTuningJobStatus"] == "Completed"
    assert answer["TrainingJobStatusCounters"]["Completed"] == 3
    children = bench.client.list_training_jobs_for_hyper_parameter_tuning_job(
        HyperParameterTuningJobName="docml-tuning-1", MaxResults=2
    )
    assert len(children["TrainingJobSummaries"]) == 2
    assert "NextToken" in children
    rate = float(answer["BestTrainingJob"]["TunedHyperParameters"]["learning_rate"])
    assert 1e-6 <= rate <= 1e-4


@pytest.fixture
def url(bench: Bench) -> Iterator[str]:
    with serve(bench.endpoint) as address:
        yield address


def test_the_same_over_http(bench: Bench, url: str) -> None:
    config = Config(retries={"total_max_attempts": 1})
    client = boto3.client("sagemaker", endpoint_url=url, config=config, **CREDENTIALS)
    client.create_training_job(**TRAINING)
    bench.faults.order("DescribeTrainingJob", "lost_response")
    with pytest.raises(ConnectionClosedError):
        client.describe_training_job(TrainingJobName="docml-training-1")
    assert client.describe_training_job(TrainingJobName="docml-training-1")["TrainingJobStatus"] == "InProgress"
    sts = boto3.client("sts", endpoint_url=url, **CREDENTIALS)
    assert sts.get_caller_identity()["Account"] == "123456789012"


def test_logs_are_paged_and_lag(bench: Bench, url: str) -> None:
    logs = boto3.client("logs", endpoint_url=url, **CREDENTIALS)
    for number in range(3):
        bench.endpoint.logs.write("/group", "job/algo-1", f"line {number}")
    first = logs.get_log_events(logGroupName="/group", logStreamName="job/algo-1", startFromHead=True, limit=2)
    assert [event["message"] for event in first["events"]] == ["line 0", "line 1"]
    rest = logs.get_log_events(logGroupName="/group", logStreamName="job/algo-1", nextToken=first["nextForwardToken"])
    assert [event["message"] for event in rest["events"]] == ["line 2"]
    bench.faults.log_lag = 5
    late = logs.get_log_events(logGroupName="/group", logStreamName="job/algo-1", startFromHead=True)
    assert late["events"] == []
