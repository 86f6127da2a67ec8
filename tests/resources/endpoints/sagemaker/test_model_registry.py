"""Champions in the model registry: one package a model, the champion's approved, through kills, lost answers and a busy service."""

from pathlib import Path

import cfnlint.decode
import pytest

from resources.endpoints import endpoints as module
from resources.endpoints.endpoints import ask_patiently
from resources.endpoints.interface import EndpointRefused, EndpointSpec
from resources.endpoints.sagemaker.model_registry import ModelRegistry, describe_package, group_name
from tests.contracts.endpoints_contract import EXPERIMENT
from tests.resources.endpoints.sagemaker.test_exactly_once import Bench, BoundedClient, Killed
from tests.resources.jobs.cloud import ROLE
from tests.servers.iam import as_list
from tests.servers.sagemaker.model_registry import Registry

TEMPLATE = Path(__file__).parents[4] / "deploy/cloudformation.yaml"
GROUP = group_name(EXPERIMENT)
STORE = "s3://bucket/docml"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return Bench(tmp_path)


def registry(bench: Bench, store: str = STORE) -> ModelRegistry:
    """As a fresh process would make it."""
    environment = {"AWS_REGION": "eu-west-1", "DOCML_SAGEMAKER_ROLE_ARN": ROLE}
    remote = type("Remote", (), {"url": store, "local_path": None})
    return ModelRegistry(remote, environment, BoundedClient(bench, environment))  # type: ignore[arg-type]


def mirror(bench: Bench, champion: EndpointSpec) -> str:
    return ask_patiently(lambda: registry(bench).mirror(champion, "by ann"), "the registry", 0.0)


def registered(bench: Bench) -> Registry:
    return bench.endpoint.sagemaker.registry


def test_approval_follows_the_champion(bench: Bench) -> None:
    first, second = bench.spec(1), bench.spec(2)
    arn = mirror(bench, first)
    assert mirror(bench, first) == arn
    assert registered(bench).approvals(GROUP) == {describe_package(first): "Approved"}
    assert mirror(bench, second) != arn
    assert registered(bench).approvals(GROUP) == {
        describe_package(first): "Rejected",
        describe_package(second): "Approved",
    }
    assert mirror(bench, first) == arn  # a rollback
    assert registered(bench).approvals(GROUP) == {
        describe_package(first): "Approved",
        describe_package(second): "Rejected",
    }


def test_a_package_holds_what_answers_and_leads_back_to_its_run(bench: Bench) -> None:
    spec = bench.spec(1)
    mirror(bench, spec)
    (package,) = registered(bench).packages
    (container,) = package["InferenceSpecification"]["Containers"]
    assert container["ModelDataSource"]["S3DataSource"]["S3Uri"] == f"{STORE}/{spec.folder}/"
    assert container["Environment"] == {"DOCML_MANIFEST_SHA256": spec.manifest_sha256, "DOCML_STORE": STORE}
    assert package["CustomerMetadataProperties"]["docml:run"] == "1"
    report = package["ModelMetrics"]["ModelQuality"]["Statistics"]["S3Uri"]
    assert report == f"{STORE}/{EXPERIMENT}/run_1/inference/report.json"


def test_kill_9_at_every_call_and_then_again(bench: Bench) -> None:
    first, second = bench.spec(1), bench.spec(2)
    for champion, other in ((first, None), (second, first), (first, second)):
        boundary, killed = 0, True
        while killed:
            before = [dict(package) for package in registered(bench).packages], dict(registered(bench).groups)
            bench.left_to_live = boundary
            try:
                mirror(bench, champion)
                killed = False
            except Killed:
                pass
            bench.left_to_live = None
            mirror(bench, champion)
            assert registered(bench).approvals(GROUP) == {
                describe_package(champion): "Approved",
                **({describe_package(other): "Rejected"} if other else {}),
            }
            if killed:
                registered(bench).packages, registered(bench).groups = before
            boundary += 1
        assert boundary > 6


@pytest.mark.parametrize(
    "operation", ["CreateModelPackageGroup", "CreateModelPackage", "UpdateModelPackage", "ListModelPackages"]
)
@pytest.mark.parametrize("fault", ["lost_response", "throttle", "server_error"])
def test_a_lost_answer_and_a_busy_service(bench: Bench, operation: str, fault: str) -> None:
    bench.faults.order(operation, fault, 2)
    mirror(bench, bench.spec(1))
    mirror(bench, bench.spec(2))
    assert sorted(registered(bench).approvals(GROUP).values()) == ["Approved", "Rejected"]


def test_what_is_not_ours_is_left_alone(bench: Bench) -> None:
    mirror(bench, bench.spec(1))
    registered(bench).packages.append(
        registered(bench).packages[0]
        | {"ModelPackageArn": "theirs", "ModelPackageDescription": "by hand", "ClientToken": "theirs"}
    )
    mirror(bench, bench.spec(2))
    assert registered(bench).approvals(GROUP)["by hand"] == "Approved"
    with pytest.raises(
        EndpointRefused,
        match=r"a group docml-EXP-1-contract that belongs to s3://bucket/docml, expected s3://other/docml",
    ):
        registry(bench, "s3://other/docml").mirror(bench.spec(1), "by ann")


def test_what_would_be_refused_is_refused_with_the_setting(bench: Bench) -> None:
    with pytest.raises(EndpointRefused, match="has no image: set DOCKER_IMAGE"):
        mirror(bench, bench.spec(1).model_copy(update={"image": None}))
    with pytest.raises(EndpointRefused, match=r"CreateModelPackage would be refused:\n.*ml\.nonsense"):
        mirror(bench, bench.spec(1).model_copy(update={"instance_type": "ml.nonsense"}))
    assert registered(bench).groups == {}


def test_it_needs_what_the_template_allows_and_no_more(bench: Bench) -> None:
    for run in (1, 2, 1):
        mirror(bench, bench.spec(run))
    called = {f"{service}:{operation}" for service, operation, _ in bench.endpoint.calls}
    template, _ = cfnlint.decode.decode(str(TEMPLATE))
    (policy,) = template["Resources"]["OrchestratorRole"]["Properties"]["Policies"]
    allowed = {
        action
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Sid"] == "MirrorChampions"
        for action in as_list(statement["Action"])
    }
    assert called == allowed - {"sagemaker:AddTags"}  # asked by the service, for the group's tags
