"""deploy/services.yaml: passes cfn-lint, creates in (an imitation of) AWS, and runs what deploy/compose.yaml runs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import cfnlint.decode
import pytest
from moto import mock_aws

from tests.deploy.test_cloudformation import ACCOUNT, REGION, statements
from tests.deploy.test_compose import COMPOSE, OURS, env_example

TEMPLATE = Path(__file__).resolve().parents[2] / "deploy" / "services.yaml"
# For what moto's CloudFormation leaves out: roles of tasks, Service Connect, secrets.
RESOURCES: dict[str, Any] = cfnlint.decode.decode(str(TEMPLATE))[0]["Resources"]
# moto makes everything else of the template; cfn-lint has looked at these.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Tried to parse AWS..SecretsManager..Secret"),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS..EC2..SecurityGroupEgress"),
]
GIVEN = {
    "Image": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/docml-services:1",
    "Store": f"s3://docml-{ACCOUNT}-{REGION}/experiments",
    "ProductionFiles": "s3://production-documents/documents/",
    "JobRoleArn": f"arn:aws:iam::{ACCOUNT}:role/docml-job",
    "OrchestratorRoleArn": f"arn:aws:iam::{ACCOUNT}:role/docml-orchestrator",
    "ComputeLogsBucket": f"docml-{ACCOUNT}-{REGION}",
    "JobImage": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/docml:1",
}


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The parameters of an account with a VPC."""
    for key, value in {"ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing", "DEFAULT_REGION": REGION}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        ec2 = boto3.client("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnets = [
            ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{index}.0/24", AvailabilityZone=f"{REGION}{zone}")["Subnet"]
            for index, zone in enumerate("ab")
        ]
        yield {"VpcId": vpc, "SubnetIds": ",".join(subnet["SubnetId"] for subnet in subnets)}


def create(**parameters: str) -> dict[str, dict[str, Any]]:
    """Create the stack; the container definition of each of its services."""
    cloudformation, ecs = boto3.client("cloudformation"), boto3.client("ecs")
    cloudformation.create_stack(
        StackName="services",
        TemplateBody=TEMPLATE.read_text(encoding="utf-8"),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in (GIVEN | parameters).items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    assert cloudformation.describe_stacks(StackName="services")["Stacks"][0]["StackStatus"] == "CREATE_COMPLETE"
    found = {}
    for service in ecs.describe_services(cluster="docml", services=OURS)["services"]:
        task = ecs.describe_task_definition(taskDefinition=service["taskDefinition"])["taskDefinition"]
        (found[service["serviceName"]],) = task["containerDefinitions"]
    return found


def test_passes_cfn_lint() -> None:
    command = [str(Path(sys.executable).parent / "cfn-lint"), "--regions", REGION, "us-east-1", "--", str(TEMPLATE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_services_are_those_of_compose(network: dict[str, str]) -> None:
    services = create(**network)
    assert sorted(services) == sorted(OURS)
    for name, container in services.items():
        assert container["command"] == COMPOSE["services"][name]["command"]
    assert services["code"]["healthCheck"]["command"] == COMPOSE["services"]["code"]["healthcheck"]["test"]
    # The code location alone, in which runs execute, gets docml's settings.
    given = {entry["name"] for entry in services["code"]["environment"]}
    assert given == env_example().keys() - {"DAGSTER_POSTGRES_PASSWORD"} | {"DOCML_EXPERIMENTS"}
    for name in ("daemon", "webserver"):
        given = {entry["name"] for entry in services[name]["environment"]}
        assert given == {"AWS_REGION", "AWS_DEFAULT_REGION", "DAGSTER_COMPUTE_LOGS_BUCKET"}
    roles = [RESOURCES[f"{name.title()}Task"]["Properties"]["TaskRoleArn"] for name in ("code", "daemon", "webserver")]
    assert roles == [{"Ref": "OrchestratorRoleArn"}, *[{"Fn::GetAtt": ["ServicesRole", "Arn"]}] * 2]
    actions = {action for s in statements("docml-services") for action in (s["Action"], s["Resource"])}
    bucket = f"arn:aws:s3:::{GIVEN['ComputeLogsBucket']}"
    assert actions == {"s3:ListBucket", bucket, "s3:GetObject", f"{bucket}/dagster/*"}
    (database,) = boto3.client("rds").describe_db_instances()["DBInstances"]
    assert database["PubliclyAccessible"] is False
    assert database["StorageEncrypted"] is True
    assert (database["MasterUsername"], database["DBName"]) == ("dagster", "dagster")


def test_the_password_stands_in_secrets_alone() -> None:
    password = "{{resolve:secretsmanager:${DatabasePassword}:SecretString:password}}"
    assert RESOURCES["Database"]["Properties"]["MasterUserPassword"] == {"Fn::Sub": password}
    assert RESOURCES["DatabaseUrl"]["Properties"]["SecretString"] == {
        "Fn::Sub": f"postgresql+psycopg2://dagster:{password}@${{Database.Endpoint.Address}}/dagster?sslmode=require"
    }
    assert RESOURCES["DatabasePassword"]["Properties"]["GenerateSecretString"]["ExcludePunctuation"] is True
    for name in ("CodeTask", "DaemonTask", "WebserverTask"):
        (container,) = RESOURCES[name]["Properties"]["ContainerDefinitions"]
        (secret,) = container["Secrets"]
        assert secret["Name"] == "DAGSTER_POSTGRES_URL"
        assert secret["ValueFrom"]["Fn::If"] == [
            "MakesDatabase",
            {"Ref": "DatabaseUrl"},
            {"Ref": "DatabaseUrlSecretArn"},
        ]


def test_with_a_database_that_is_there(network: dict[str, str]) -> None:
    arn = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:docml/dagster-Ab12"
    services = create(**network, DatabaseUrlSecretArn=arn)
    assert {container["secrets"][0]["valueFrom"] for container in services.values()} == {arn}
    assert boto3.client("rds").describe_db_instances()["DBInstances"] == []
    (read,) = [s for s in statements("docml-services-execution") if s["Action"] == "secretsmanager:GetSecretValue"]
    assert read["Resource"] == arn


def test_code_is_found_under_the_name_that_the_workspace_has() -> None:
    (served,) = RESOURCES["Code"]["Properties"]["ServiceConnectConfiguration"]["Services"]
    assert served["ClientAliases"] == [{"DnsName": "code", "Port": 4000}]
    assert all(
        RESOURCES[name]["Properties"]["ServiceConnectConfiguration"]["Enabled"] for name in ("Daemon", "Webserver")
    )
    deployments = [RESOURCES[name]["Properties"]["DeploymentConfiguration"] for name in ("Code", "Daemon", "Webserver")]
    assert deployments == [{"MinimumHealthyPercent": 0, "MaximumPercent": 100}] * 3
