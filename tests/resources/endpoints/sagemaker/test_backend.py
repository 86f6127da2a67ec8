"""Endpoints on SageMaker keep the contract, against a service that runs the containers' `serve` as processes over a real S3 server."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resources.endpoints.endpoints import Endpoints
from resources.endpoints.interface import EndpointFailed, EndpointSpec
from resources.endpoints.sagemaker.backend import SageMakerEndpoints
from resources.endpoints.sagemaker.client import Client, Missing
from resources.endpoints.sagemaker.requests import configuration_request
from resources.jobs.sagemaker.requests import Account
from resources.store import Store
from tests.contracts.endpoints_contract import EndpointsContract, answer, deploy, fill, plain_spec
from tests.resources.jobs.cloud import IMAGE, Cloud, cloud
from tests.servers.s3 import S3Server
from tests.servers.sagemaker.hosting import Hosting, ServedContainers

SERVER = (sys.executable, str(Path(__file__).parents[1] / "fake_server.py"))


class CloudBench:
    def __init__(self, running: Cloud) -> None:
        self.cloud, self.store = running, running.store
        fill(self.store)

    @property
    def hosting(self) -> Hosting:
        assert self.cloud.endpoint.sagemaker.hosting is not None
        return self.cloud.endpoint.sagemaker.hosting

    def endpoints(self) -> Endpoints:
        backend = SageMakerEndpoints(self.store, self.cloud.environment, calls_a_second=0.0, poll_seconds=0.05)
        return Endpoints(self.store, backend)

    def spec(self, run: int, **changes: Any) -> EndpointSpec:
        return plain_spec(self.store, run, image=IMAGE, instance_type="ml.m5.xlarge", **changes)

    def left(self) -> list[str]:
        return self.hosting.left()

    def servers(self) -> int:
        containers = self.hosting.start
        assert isinstance(containers, ServedContainers)
        return sum(1 for each in containers.running if each.process is not None and each.process.poll() is None)


@pytest.fixture
def bench(tmp_path: Path, s3_server: S3Server) -> Iterator[CloudBench]:
    with cloud(tmp_path, s3_server, SERVER) as running:
        yield CloudBench(running)


class TestSageMakerEndpoints(EndpointsContract):
    """The contract."""


def test_async_answers_through_the_bucket_and_scales_to_zero(bench: CloudBench) -> None:
    spec = bench.spec(1, mode="async")
    up = deploy(bench, spec)
    assert up.is_up
    (target,) = bench.hosting.targets.values()
    assert (target["MinCapacity"], target["MaxCapacity"]) == (0, 1)
    assert {policy["PolicyType"] for policy in bench.hosting.policies.values()} == {
        "TargetTrackingScaling",
        "StepScaling",
    }
    assert bench.hosting.alarms.keys() == {f"docml-{spec.name}-errors", f"docml-{spec.name}-backlog"}
    assert answer(bench, spec.name)["run"] == 1
    with pytest.raises(EndpointFailed, match=r"refuses: .*not JSON"):
        bench.endpoints().invoke(spec.name, b"bad")
    assert bench.store.list_folders(spec.data_key)
    endpoints = bench.endpoints()
    endpoints.remove(endpoints.records.find(spec.name))
    assert bench.left() == []
    assert list(bench.store.list(f"{spec.experiment}/endpoints")) == []


def test_a_key_for_the_volume_is_named_only_where_there_is_a_volume() -> None:
    account = Account("s3://bucket/docml", "arn:aws:iam::123456789012:role/docml-job", kms_key="arn:aws:kms:::key/1")
    for instance_type, named in (("ml.m5.xlarge", True), ("ml.g5.xlarge", False), ("ml.g4dn.xlarge", False)):
        spec = EndpointSpec(
            name="live",
            experiment="EXP-1",
            run=1,
            model="toy",
            mode="async",
            folder="f",
            manifest_sha256="0",
            instance_type=instance_type,
        )
        request = configuration_request(spec, account)
        assert ("KmsKeyId" in request) is named
        assert request["AsyncInferenceConfig"]["OutputConfig"]["KmsKeyId"] == account.kms_key


def test_a_model_that_is_not_visible_yet_is_waited_for(bench: CloudBench, monkeypatch: pytest.MonkeyPatch) -> None:
    call, late = Client.call, ["create_endpoint_config"]

    def hidden(self: Client, what: str, service: str, operation: str, **request: Any) -> Any:
        if operation in late:
            late.remove(operation)
            raise Missing(what)
        return call(self, what, service, operation, **request)

    monkeypatch.setattr(Client, "call", hidden)
    assert deploy(bench, bench.spec(1)).is_up
    assert late == []


def test_another_stores_endpoint_is_left_alone(bench: CloudBench) -> None:
    spec = bench.spec(1)
    deploy(bench, spec)
    other = Store.open(f"{bench.store.url}-other", environment=bench.cloud.environment)
    fill(other)
    theirs = Endpoints(other, SageMakerEndpoints(other, bench.cloud.environment, calls_a_second=0.0, poll_seconds=0.05))
    with pytest.raises(Exception, match="belongs to s3://"):
        theirs.deploy(spec, by="others", check=lambda invoke: 1, say=lambda text: None)
    assert theirs.sweep() == []
    assert bench.endpoints().list_endpoints()[0].is_up
