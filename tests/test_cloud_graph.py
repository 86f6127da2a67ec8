"""The whole graph with the real trainer on the local SageMaker endpoint, whose S3 denies what the roles of deploy/ may not: two hosts,
tuning, equality with jobs on this machine."""

import json
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner
from moto import mock_aws

from docml_assets.cli import run as run_command
from docml_assets.deployment import SAMPLE
from docml_assets.experiment.scaffold import new_experiment
from docml_contract.names import RunPlace
from docml_contract.sandbox import find_exposure
from resources.jobs.sagemaker import backend
from resources.store import Store
from tests.deploy.test_cloudformation import EXPERIMENT_ROLE, create, statements
from tests.docml_contract.test_seclude import CANARY
from tests.resources.jobs.cloud import HURRY, Cloud, cloud
from tests.servers.iam import all_actions, allowing
from tests.servers.s3 import S3Server
from tests.servers.s3_trace import Needed, Trace, traced
from tests.test_canaries import FUNCTIONS, watch_functions, write_credentials

EXPERIMENT = "EXP-7-cloud"
# The image, without Docker: a user who is not root, processes of its own, and files among which the orchestrator's home is not.
MACHINE = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
AS_NOBODY = 'mount -t tmpfs none "$0" && exec unshare --user --map-user=65534 --map-group=65534 "$@"'
ENTRYPOINT = Path(__file__).resolve().parents[1] / "trainer_image/entrypoint"
JOB_ROLE = f"docml-job-{EXPERIMENT}"
BUCKET, PRODUCTION = "docml-123456789012-us-east-1", "production-documents"
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
        # champions: tests/resources/endpoints/sagemaker/test_model_registry.py
        *("sagemaker:CreateModelPackage", "sagemaker:CreateModelPackageGroup", "sagemaker:DescribeModelPackageGroup"),
        *("sagemaker:ListModelPackages", "sagemaker:UpdateModelPackage"),
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
    pytest.mark.skipif(find_exposure() is not None, reason="this machine allows no namespaces"),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS..S3..BucketPolicy"),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS..EC2..SecurityGroupEgress"),
]


@pytest.fixture(scope="module")
def policies() -> dict[str, list[dict[str, Any]]]:
    """The statements of each role, with one for this experiment."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        create(ProductionBucketName=PRODUCTION, ProductionPrefix="documents")
        create(EXPERIMENT_ROLE, Experiment=EXPERIMENT, StorePrefix="experiments/cloud")
        found = {role: statements(role) for role in ("docml-orchestrator", "docml-job", JOB_ROLE)}
        boto3.DEFAULT_SESSION = None
    return found


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
    tmp_path: Path,
    s3_server: S3Server,
    policies: dict[str, list[dict[str, Any]]],
    orchestrators: Trace,
    jobs: Trace,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cloud]:
    new_experiment(tmp_path / "experiments" / EXPERIMENT, None)
    settings = tmp_path / "experiments" / EXPERIMENT / "settings.ini"
    text = settings.read_text().replace("epochs = 10", "epochs = 1").replace("max_words = 2000", "max_words = 200")
    settings.write_text(
        text.replace(
            "RUN_NUM = 1",
            "RUN_NUM = 1\nUSE_DISTRIBUTED = true\nTRAINING_INSTANCE_COUNT = 2\nTUNING_STRATEGY = Random\n"
            "MAX_JOBS = 2\nMAX_PARALLEL_JOBS = 1",
        )
    )
    home = tmp_path / "home"
    write_credentials(home)
    watch_functions(settings.parent, home)
    production = Store.open(f"{s3_server.bucket(PRODUCTION)}/documents", environment=s3_server.environment)
    production.upload(SAMPLE / "artifacts", "")
    for name in ("calls_a_second", "log_calls_a_second", "poll_seconds", "log_settle_seconds"):
        monkeypatch.setattr(backend, name.upper(), HURRY[name])
    machines = tmp_path / "machines"
    role = f"arn:aws:iam::123456789012:role/{JOB_ROLE}"
    image = (*MACHINE, "sh", "-c", AS_NOBODY, str(home), str(ENTRYPOINT))
    here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    with cloud(
        machines, orchestrators.server, image, bucket=BUCKET, jobs_s3=jobs.server, role=role, containers=here
    ) as running:
        for key, value in {
            **running.environment,
            "DOCML_SAGEMAKER_ROLE_ARN": role.replace(EXPERIMENT, "{experiment}"),
            "HOME": str(home),
            "DAGSTER_HOME": str(tmp_path / "dagster"),
            "DOCML_EXPERIMENTS": str(tmp_path / "experiments"),
            "DOCML_PRODUCTION_FILES": f"s3://{PRODUCTION}/documents",
            "OMP_NUM_THREADS": "1",
            "MY_SECRET": CANARY,
            "DOCML_ENV": "",
            "DOCML_STORE": "",
        }.items():
            monkeypatch.setenv(key, value)
        left = [stored.key for stored in running.store.list("")]  # by another test: the roles know one bucket
        running.store.delete(left)
        for trace, role in ((orchestrators, "docml-orchestrator"), (jobs, JOB_ROLE)):
            trace.needed.clear()  # what making the buckets took
            trace.allows = partial(allows, policies[role])
        yield running


def allows(statements: list[dict[str, Any]], needed: Needed) -> bool:
    return bool(allowing(statements, needed))


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


def check_permissions(needed: dict[str, set[Needed]], policies: dict[str, list[dict[str, Any]]]) -> None:
    """Nothing that was needed is denied, and nothing is allowed that nobody needs."""
    for role, wanted in needed.items():
        denied = [need for need in wanted if not allowing(policies[role], need)]
        assert not denied, f"{role} may not: {denied[:5]}"
        unused = all_actions(policies[role]) - {need.action for need in wanted} - NOT_SEEN_HERE[role]
        assert not unused, f"{role} may do what nobody needs: {unused}"


def test_the_graph_runs_on_two_hosts_with_a_role_for_one_experiment(
    clouded: Cloud, orchestrators: Trace, jobs: Trace
) -> None:
    in_the_cloud = run("aws", f"{clouded.store.url}/cloud")
    assert {"preparation", "training/averaged-words", "inference"} <= versions(in_the_cloud, 1).keys()
    assert [request["ResourceConfig"]["InstanceCount"] for request in clouded.calls("CreateTrainingJob")] == [2]
    assert {request["RoleArn"] for request in clouded.calls("CreateProcessingJob")} == {
        f"arn:aws:iam::123456789012:role/{JOB_ROLE}"
    }
    assert orchestrators.denied | jobs.denied == set()
    assert CANARY not in str(clouded.endpoint.calls)
    log = str(clouded.endpoint.logs.groups)
    assert {name for name in FUNCTIONS if f"looked in {name}" in log} == set(FUNCTIONS) - {"process_func"}
    assert any(stored.key.endswith("/looked.txt") for stored in in_the_cloud.list(f"{EXPERIMENT}/data"))
    # What another experiment's jobs are denied, at the same place:
    for_others = jobs.server.client()
    for key in ("EXP-8/data/x", f"{EXPERIMENT}0/run_1/jobs/x", f"{EXPERIMENT}/run_1/experiment/CLAIM.json"):
        with pytest.raises(ClientError, match="AccessDenied"):
            for_others.put_object(Bucket=BUCKET, Key=f"experiments/cloud/{key}", Body=b"")
    with pytest.raises(ClientError, match="AccessDenied"):
        for_others.list_objects_v2(Bucket=BUCKET, Prefix="experiments/cloud/EXP-8/")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cloud_and_local_twin_agree_and_tuning_runs_in_the_cloud(
    clouded: Cloud, orchestrators: Trace, jobs: Trace, policies: dict[str, list[dict[str, Any]]]
) -> None:
    root = clouded.store.url
    in_the_cloud = run("aws", f"{root}/cloud")
    run("aws", f"{root}/cloud", "--next", "--steps", "reconciliation,preparation,tuning,inference")
    needed = {
        "docml-orchestrator": orchestrators.needed | needed_of_services(clouded),
        "docml-job": set(jobs.needed),
    }
    assert orchestrators.denied | jobs.denied == set()
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
    check_permissions(needed, policies)
