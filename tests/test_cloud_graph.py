"""The whole graph with the real trainer on the local SageMaker endpoint: two hosts, tuning, equality with jobs on this machine, permissions."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner
from moto import mock_aws

from docml_assets.cli import run as run_command
from docml_assets.deployment import SAMPLE
from docml_assets.experiment.scaffold import new_experiment
from docml_contract.names import RunPlace
from resources.jobs.sagemaker import backend
from resources.store import Store
from tests.deploy.test_cloudformation import EXPERIMENT_ROLE, create, statements
from tests.resources.jobs.cloud import HURRY, Cloud, cloud
from tests.servers.iam import all_actions, allowing
from tests.servers.s3 import S3Server
from tests.servers.s3_trace import Needed, Trace, traced

EXPERIMENT = "EXP-7-cloud"
TRAINER = (sys.executable, "-m", "docml_trainer")
BUCKET, PRODUCTION = "docml-123456789012-us-east-1", "production-documents"
CANARY = "CANARY-7d1f"
# What only the service itself, or other moments than these runs, need of the roles: each with its reason.
NOT_SEEN_HERE = {
    "docml-orchestrator": {
        "iam:PassRole",  # asked by Create
        # endpoints: tests/resources/endpoints/sagemaker/test_permissions.py
        *("sagemaker:CreateEndpoint", "sagemaker:CreateEndpointConfig", "sagemaker:CreateModel"),
        *("sagemaker:DeleteEndpoint", "sagemaker:DeleteEndpointConfig", "sagemaker:DeleteModel"),
        *("sagemaker:DescribeEndpoint", "sagemaker:InvokeEndpoint", "sagemaker:InvokeEndpointAsync"),
        *("sagemaker:ListEndpoints", "sagemaker:ListEndpointConfigs", "sagemaker:ListModels"),
        *("sagemaker:UpdateEndpoint", "cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms"),
        *("application-autoscaling:RegisterScalableTarget", "application-autoscaling:PutScalingPolicy"),
        "application-autoscaling:DeregisterScalableTarget",
        "cloudwatch:DescribeAlarms",  # asked by UpdateEndpoint
        "iam:CreateServiceLinkedRole",  # asked by RegisterScalableTarget
        "sagemaker:ListTags",  # a name that is taken: test_aws_errors
        "sagemaker:StopHyperParameterTuningJob",  # cancels and orphans: the contract's tests
        "sagemaker:StopProcessingJob",
        "sagemaker:StopTrainingJob",
        "secretsmanager:GetSecretValue",  # DOCML_LABELS_URL as a reference
        "s3:AbortMultipartUpload",  # an upload that broke
        "s3:GetBucketLocation",  # dagster's compute logs
        "s3:ListBucketMultipartUploads",
        "s3:ListMultipartUploadParts",
        "s3:DeleteObject",
    },
    "docml-job": {
        "ecr:BatchCheckLayerAvailability",  # pulling the image
        "ecr:BatchGetImage",
        "ecr:GetDownloadUrlForLayer",
        "ecr:GetAuthorizationToken",
        "logs:CreateLogGroup",  # writing the log
        "logs:CreateLogStream",
        "logs:DescribeLogStreams",
        "logs:PutLogEvents",
        "cloudwatch:PutMetricData",
        "secretsmanager:GetSecretValue",  # the tracker's key
        "s3:AbortMultipartUpload",
    },
}
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS..S3..BucketPolicy"),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS..EC2..SecurityGroupEgress"),
]


@pytest.fixture
def orchestrators(s3_server: S3Server) -> Iterator[Trace]:
    with traced(s3_server) as trace:
        yield trace


@pytest.fixture
def jobs(s3_server: S3Server) -> Iterator[Trace]:
    with traced(s3_server) as trace:
        yield trace


@pytest.fixture
def clouded(
    tmp_path: Path, s3_server: S3Server, orchestrators: Trace, jobs: Trace, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cloud]:
    new_experiment(tmp_path / "experiments" / EXPERIMENT, None)
    settings = tmp_path / "experiments" / EXPERIMENT / "settings.ini"
    text = settings.read_text().replace("epochs = 10", "epochs = 2").replace("max_words = 2000", "max_words = 200")
    settings.write_text(
        text.replace(
            "RUN_NUM = 1",
            "RUN_NUM = 1\nUSE_DISTRIBUTED = true\nTRAINING_INSTANCE_COUNT = 2\nMAX_ARTIFACTS = 60\nTUNING_STRATEGY = Random\n"
            "MAX_JOBS = 2\nMAX_PARALLEL_JOBS = 1",
        )
    )
    production = Store.open(f"{s3_server.bucket(PRODUCTION)}/documents", environment=s3_server.environment)
    production.upload(SAMPLE / "artifacts", "")
    for name in ("calls_a_second", "log_calls_a_second", "poll_seconds", "log_settle_seconds"):
        monkeypatch.setattr(backend, name.upper(), HURRY[name])
    machines = tmp_path / "machines"
    with cloud(machines, orchestrators.server, TRAINER, bucket=BUCKET, jobs_s3=jobs.server) as running:
        for key, value in {
            **running.environment,
            "DAGSTER_HOME": str(tmp_path / "home"),
            "DOCML_EXPERIMENTS": str(tmp_path / "experiments"),
            "DOCML_PRODUCTION_FILES": f"s3://{PRODUCTION}/documents",
            "OMP_NUM_THREADS": "1",
            "MY_SECRET": CANARY,
            "DOCML_ENV": "",
            "DOCML_STORE": "",
        }.items():
            monkeypatch.setenv(key, value)
        for trace in (orchestrators, jobs):
            trace.needed.clear()  # what making the buckets took
        yield running


def run(kind: str, store: str, *arguments: str) -> Store:
    """docml run in this process, on `kind` jobs over a store of its own."""
    os.environ["DOCML_ENV"] = kind
    os.environ["DOCML_STORE"] = store
    result = CliRunner().invoke(run_command.run, [EXPERIMENT, *arguments], standalone_mode=False)
    assert result.exception is None, result.output
    assert result.return_value in (0, None), result.output
    return Store.open(store, environment=os.environ)


def versions(store: Store, number: int) -> dict[str, str]:
    """Data version by folder, of everything that a run finished."""
    root = RunPlace(EXPERIMENT, number).root
    found = {}
    for stored in store.list(root):
        if stored.key.endswith("/MANIFEST.json") and "/checkpoints/" not in stored.key:
            name = stored.key.removeprefix(f"{root}/").removesuffix("/MANIFEST.json")
            found[name] = json.loads(store.get(stored.key))["data_version"]
    return found


def report(store: Store, number: int) -> dict[str, Any]:
    """report.json without what differs between equal runs: timings, and model.pt's hash (it names the file it was traced from)."""
    content: dict[str, Any] = json.loads(store.get(f"{RunPlace(EXPERIMENT, number).inference}/report.json"))
    for model in content["models"].values():
        for name in ("docs_per_second", "latency_ms", "torchscript_sha256"):
            model.pop(name, None)
    return content


def needed_of_services(cloud: Cloud) -> set[Needed]:
    """The actions behind the calls of SageMaker's and CloudWatch's API, on a resource of their kind."""
    kinds = {"Training": "training-job", "Processing": "processing-job", "HyperParameter": "hyper-parameter-tuning-job"}
    found = set()
    for service, operation, _ in cloud.endpoint.calls:
        if service == "sts":  # who one is may be asked by anybody
            continue
        if service == "logs":
            group = "arn:aws:logs:us-east-1:123456789012:log-group:/aws/sagemaker/TrainingJobs:log-stream:x"
            found.add(Needed(f"logs:{operation}", group))
            continue
        noun = re.sub("^(Create|Describe|Stop|List)|TrainingJobsFor(?=Hyper)", "", operation)
        kind = next(kind for start, kind in kinds.items() if noun.startswith(start))
        arn = f"arn:aws:sagemaker:us-east-1:123456789012:{kind}/x"
        found.add(Needed(f"sagemaker:{operation}", arn))
        if operation.startswith("Create"):
            found.add(Needed("sagemaker:AddTags", arn))
    return found


def check_permissions(needed: dict[str, set[Needed]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was needed is denied, and nothing is allowed that nobody needs."""
    for key in [name for name in os.environ if name.startswith("AWS_ENDPOINT_URL")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        create(ProductionBucketName=PRODUCTION, ProductionPrefix="documents")
        create(EXPERIMENT_ROLE, Experiment=EXPERIMENT, StorePrefix="experiments/*")
        policies = {role: statements(role) for role in needed}
        for_one = statements(f"docml-job-{EXPERIMENT}")
        boto3.DEFAULT_SESSION = None
    beyond = [need for need in needed["docml-job"] if not allowing(for_one, need)]
    assert not beyond, f"a role for one experiment may not: {beyond[:5]}"
    for role, wanted in needed.items():
        denied = [need for need in wanted if not allowing(policies[role], need)]
        assert not denied, f"{role} may not: {denied[:5]}"
        unused = all_actions(policies[role]) - {need.action for need in wanted} - NOT_SEEN_HERE[role]
        assert not unused, f"{role} may do what nobody needs: {unused}"


def test_cloud_and_local_twin_agree_and_tuning_runs_in_the_cloud(
    clouded: Cloud, orchestrators: Trace, jobs: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = clouded.store.url
    in_the_cloud = run("aws", f"{root}/cloud")
    run("aws", f"{root}/cloud", "--next", "--steps", "reconciliation,preparation,tuning,inference")
    needed = {
        "docml-orchestrator": orchestrators.needed | needed_of_services(clouded),
        "docml-job": set(jobs.needed),
    }
    before = len(clouded.started())
    run("aws", f"{root}/cloud")
    assert len(clouded.started()) == before  # a finished run launches nothing
    assert [request["ResourceConfig"]["InstanceCount"] for request in clouded.calls("CreateTrainingJob")] == [2]
    assert len(clouded.calls("CreateHyperParameterTuningJob")) == 1
    assert len(clouded.calls("CreateProcessingJob")) == 3  # one preparation, two inferences
    (trials,) = [
        stored.key
        for stored in in_the_cloud.list(EXPERIMENT)
        if stored.key.endswith("tuning/averaged-words/trials.json")
    ]
    assert [trial["status"] for trial in json.loads(in_the_cloud.get(trials))["trials"]] == ["Completed"] * 2
    assert CANARY not in str(clouded.endpoint.calls)

    at_home = run("local", f"{root}/home")
    cloudy = versions(in_the_cloud, 1)
    assert cloudy == versions(at_home, 1)
    assert {
        "experiment",
        "reconciliation",
        "labels",
        "preparation",
        "training/averaged-words",
        "inference",
    } <= cloudy.keys()
    assert report(in_the_cloud, 1) == report(at_home, 1)
    check_permissions(needed, monkeypatch)
