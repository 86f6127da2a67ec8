"""deploy/cloudformation.yaml: passes cfn-lint, and creates in (an imitation of) AWS with and without its options."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import cfnlint.decode
import pytest
from moto import mock_aws

from tests.servers.iam import allowing
from tests.servers.s3_trace import Needed

TEMPLATE = Path(__file__).resolve().parents[2] / "deploy" / "cloudformation.yaml"
EXPERIMENT_ROLE = TEMPLATE.with_name("experiment-role.yaml")
# moto makes everything else of the template; cfn-lint has looked at these two.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Tried to parse AWS..S3..BucketPolicy"),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS..EC2..SecurityGroupEgress"),
]
REGION = "eu-west-1"
ACCOUNT = "123456789012"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for key, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield


def create(template: Path = TEMPLATE, **parameters: str) -> dict[str, str]:
    """Create the stack; its outputs."""
    cloudformation = boto3.client("cloudformation")
    cloudformation.create_stack(
        StackName=template.stem,
        TemplateBody=template.read_text(encoding="utf-8"),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    stack = cloudformation.describe_stacks(StackName=template.stem)["Stacks"][0]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def statements(role: str) -> list[dict[str, Any]]:
    """Every statement of a role's inline policies."""
    iam = boto3.client("iam")
    found: list[dict[str, Any]] = []
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        # moto keeps what a template defines as the text of a Python dict
        found += ast.literal_eval(document)["Statement"]
    return found


def only_statement(role: str, policy: str) -> dict[str, Any]:
    """The statement of a managed policy that is attached to a role, by a part of its name."""
    iam = boto3.client("iam")
    attached = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
    (arn,) = [found["PolicyArn"] for found in attached if policy in found["PolicyName"]]
    version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
    document = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
    (statement,) = (document if isinstance(document, dict) else ast.literal_eval(document))["Statement"]
    return dict(statement)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_passes_cfn_lint() -> None:
    templates = map(str, (TEMPLATE, EXPERIMENT_ROLE))
    command = [str(Path(sys.executable).parent / "cfn-lint"), "--regions", REGION, "us-east-1", "--", *templates]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_bucket_is_private_versioned_and_tidied() -> None:
    # moto's CloudFormation leaves these properties out, so they are read from the template
    template, _ = cfnlint.decode.decode(str(TEMPLATE))
    bucket = template["Resources"]["Bucket"]["Properties"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert all(bucket["PublicAccessBlockConfiguration"].values())
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    lifecycle = {rule["Id"] for rule in bucket["LifecycleConfiguration"]["Rules"]}
    assert lifecycle == {"forget-what-was-replaced", "abort-broken-uploads", "compute-logs"}
    policy = template["Resources"]["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"][0]
    assert (policy["Effect"], policy["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})


@pytest.mark.usefixtures("aws")
def test_creates_the_bucket_the_repository_and_the_roles() -> None:
    outputs = create(ProductionBucketName="production-documents", ProductionPrefix="documents/")
    bucket = f"docml-{ACCOUNT}-{REGION}"
    assert outputs["Store"] == f"s3://{bucket}/experiments"
    assert outputs["ProductionFiles"] == "s3://production-documents/documents/"
    assert outputs["JobRoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/docml-job"
    assert "Subnets" not in outputs

    s3 = boto3.client("s3")
    rules = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert boto3.client("ecr").describe_repositories(repositoryNames=["docml"])["repositories"]


@pytest.mark.usefixtures("aws")
def test_with_a_key_and_a_network() -> None:
    ec2 = boto3.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    key = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/11111111-2222-3333-4444-555555555555"
    outputs = create(ProductionBucketName="production", KmsKeyArn=key, VpcId=vpc, SubnetIds=subnet, RouteTableIds=table)
    assert outputs["Subnets"] == subnet
    assert outputs["SecurityGroups"].startswith("sg-")
    rules = boto3.client("s3").get_bucket_encryption(Bucket=f"docml-{ACCOUNT}-{REGION}")
    default = rules["ServerSideEncryptionConfiguration"]["Rules"][0]["ApplyServerSideEncryptionByDefault"]
    assert default == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    services = {endpoint["ServiceName"].split(".", 3)[3] for endpoint in ec2.describe_vpc_endpoints()["VpcEndpoints"]}
    assert services == {"s3", "ecr.api", "ecr.dkr", "logs", "monitoring", "secretsmanager"}


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("role", ["docml-job", "docml-orchestrator"])
def test_roles_allow_named_actions_on_named_resources(role: str) -> None:
    create(ProductionBucketName="production")
    # AWS knows no resource for these; the second is bound to a namespace.
    unbound = {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"}
    unbound |= {"sagemaker:ListEndpoints", "sagemaker:ListEndpointConfigs", "sagemaker:ListModels"}
    for statement in statements(role):
        actions = as_list(statement["Action"])
        assert not any("*" in action for action in actions), statement
        if set(actions) - unbound:
            assert "*" not in as_list(statement["Resource"]), statement


@pytest.mark.usefixtures("aws")
def test_jobs_never_see_production_nor_write_what_is_finished() -> None:
    create(ProductionBucketName="production-documents")
    job = statements("docml-job")
    assert "production-documents" not in json.dumps(job)
    written = [resource for s in job if "s3:PutObject" in as_list(s["Action"]) for resource in as_list(s["Resource"])]
    assert written
    unfinished = ("/run_*/jobs/", "/run_*/checkpoints/", "/run_*/predictions/*/parts/", "/endpoints/*/async/")
    assert all(any(place in resource for place in unfinished) for resource in written)
    assert all(any(place in resource for resource in written) for place in unfinished)
    assert not any("s3:DeleteObject" in as_list(statement["Action"]) for statement in job)
    orchestrator = statements("docml-orchestrator")
    on_production = [s for s in orchestrator if "production-documents" in json.dumps(s["Resource"])]
    assert {action for s in on_production for action in as_list(s["Action"])} == {
        *("s3:ListBucket", "s3:GetObject", "s3:GetObjectTagging")
    }
    passed = [s for s in orchestrator if s["Action"] == "iam:PassRole"]
    assert passed[0]["Resource"] == [
        f"arn:aws:iam::{ACCOUNT}:role/docml-job",
        f"arn:aws:iam::{ACCOUNT}:role/docml-job-*",
    ]
    assert passed[0]["Condition"] == {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    ("action", "resource", "prefix", "allowed"),
    [
        ("s3:GetObject", "docml/experiments/EXP-1/data/reconciled_artifacts/g/v/raw_text.json", "", True),
        ("s3:PutObject", "docml/experiments/EXP-1/run_1/jobs/job/output/model.pt", "", True),
        ("s3:PutObject", "docml/experiments/EXP-1/run_1/checkpoints/m/h/state", "", True),
        ("s3:PutObject", "docml/experiments/EXP-1/endpoints/live/async/answers/1.out", "", True),
        ("s3:PutObject", "docml/experiments/EXP-1/run_1/predictions/0a/parts/algo-1/1.parquet", "", True),
        ("s3:ListBucket", "docml", "experiments/EXP-1/run_1/jobs", True),
        # What another experiment's code, or one's own, must not:
        ("s3:GetObject", "docml/experiments/EXP-2/run_1/experiment/CLAIM.json", "", False),
        ("s3:GetObject", "docml/experiments/EXP-10/run_1/experiment/CLAIM.json", "", False),
        ("s3:GetObject", "docml/dagster/compute-logs/x", "", False),
        ("s3:GetObject", "production/documents/g/raw_text.json", "", False),
        ("s3:PutObject", "docml/experiments/EXP-2/run_1/jobs/job/spec/user_defined_funcs.py", "", False),
        ("s3:PutObject", "docml/experiments/EXP-2/run_1/checkpoints/m/h/state", "", False),
        ("s3:PutObject", "docml/experiments/EXP-1/run_1/experiment/CLAIM.json", "", False),
        ("s3:PutObject", "docml/experiments/EXP-1/run_1/predictions/0a/predictions.parquet", "", False),
        ("s3:PutObject", "docml/experiments/EXP-1/champion/1.json", "", False),
        ("s3:PutObject", "docml/experiments/EXP-1/endpoints/live.json", "", False),
        ("s3:PutObject", "docml/experiments/_active_jobs/job.json", "", False),
        ("s3:DeleteObject", "docml/experiments/EXP-1/run_1/jobs/job/output/model.pt", "", False),
        ("s3:ListBucket", "docml", "experiments/EXP-2/run_1", False),
        ("s3:ListBucket", "docml", "", False),
    ],
)  # fmt: skip
def test_an_experiments_role_ends_at_the_experiment(action: str, resource: str, prefix: str, allowed: bool) -> None:
    create(EXPERIMENT_ROLE, Experiment="EXP-1")
    arn = f"arn:aws:s3:::{resource.replace('docml', f'docml-{ACCOUNT}-{REGION}', 1)}"
    assert bool(allowing(statements("docml-job-EXP-1"), Needed(action, arn, prefix))) is allowed


DEPLOYMENT = TEMPLATE.parents[1] / "docs" / "deployment.md"


@pytest.mark.usefixtures("aws")
def test_the_documented_host_gets_the_orchestrators_credentials() -> None:
    commands = DEPLOYMENT.read_text(encoding="utf-8")
    (overrides,) = re.findall(r"cloudformation\.yaml[^`]*?--parameter-overrides (.*)", commands)
    parameters = dict(item.split("=") for item in overrides.split())
    outputs = create(**parameters)
    asked = set(re.findall(r"OutputKey=='(\w+)'", commands))
    assert asked == {"OrchestratorInstanceProfile"}
    iam = boto3.client("iam")
    profile = iam.get_instance_profile(InstanceProfileName=outputs["OrchestratorInstanceProfile"])["InstanceProfile"]
    assert [role["RoleName"] for role in profile["Roles"]] == ["docml-orchestrator"]
    trust = iam.get_role(RoleName="docml-orchestrator")["Role"]["AssumeRolePolicyDocument"]
    assert [statement["Principal"] for statement in trust["Statement"]] == [{"Service": "ec2.amazonaws.com"}]
    # What a container asks of the metadata service is one hop further away than what its host asks.
    assert "modify-instance-metadata-options" in commands
    assert "--http-put-response-hop-limit 2" in commands


@pytest.mark.usefixtures("aws")
def test_production_documents_may_have_tags_and_a_key_of_their_own() -> None:
    key = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/22222222-2222-3333-4444-555555555555"
    create(ProductionBucketName="production", ProductionPrefix="documents/", ProductionKmsKeyArn=key)
    orchestrator = statements("docml-orchestrator")
    ours = f"arn:aws:s3:::docml-{ACCOUNT}-{REGION}/experiments/EXP-1/data/x"
    assert allowing(orchestrator, Needed("s3:GetObjectTagging", "arn:aws:s3:::production/documents/g/raw_text.json"))
    assert not allowing(orchestrator, Needed("s3:PutObjectTagging", "arn:aws:s3:::production/documents/g/x"))
    assert allowing(orchestrator, Needed("s3:PutObjectTagging", ours))
    statement = only_statement("docml-orchestrator", "ProductionKey")
    assert (statement["Action"], statement["Resource"]) == ("kms:Decrypt", key)
    assert boto3.client("iam").list_attached_role_policies(RoleName="docml-job")["AttachedPolicies"] == []


@pytest.mark.usefixtures("aws")
def test_jobs_read_no_secret_of_the_orchestrators() -> None:
    create(ProductionBucketName="production")
    secret = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:"
    read = "secretsmanager:GetSecretValue"
    for role, name, allowed in (
        ("docml-job", "docml/labels-Ab12", False),
        ("docml-job", "docml-jobs/wandb-Ab12", True),
        ("docml-orchestrator", "docml/labels-Ab12", True),
        ("docml-orchestrator", "other/secret-Ab12", False),
    ):
        assert bool(allowing(statements(role), Needed(read, secret + name))) is allowed, (role, name)
    create(EXPERIMENT_ROLE, Experiment="EXP-1")
    assert not allowing(statements("docml-job-EXP-1"), Needed(read, secret + "docml-jobs/wandb-Ab12"))


@pytest.mark.usefixtures("aws")
def test_jobs_of_one_experiment_read_their_own_secret() -> None:
    create(EXPERIMENT_ROLE, Experiment="EXP-2", JobSecretName="docml-jobs/wandb")
    statement = only_statement("docml-job-EXP-2", "Secret")
    secret = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:docml-jobs/wandb"
    for name, allowed in (("-Ab12Cd", True), ("-of-others-Ab12Cd", False)):
        assert bool(allowing([statement], Needed("secretsmanager:GetSecretValue", secret + name))) is allowed, name
