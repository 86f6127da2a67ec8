"""Kills at every call, lost answers and the service's own failures: one endpoint, the right configuration, nothing left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from resources.endpoints import endpoints as module
from resources.endpoints import records
from resources.endpoints.endpoints import Endpoints
from resources.endpoints.interface import (
    EndpointFailed,
    EndpointRefused,
    EndpointSpec,
    EndpointUnreachable,
    UnknownEndpoint,
)
from resources.endpoints.sagemaker.backend import SageMakerEndpoints
from resources.endpoints.sagemaker.client import Client
from resources.endpoints.sagemaker.requests import part_name
from resources.store import Store
from tests.contracts.endpoints_contract import answer, deploy, fill, plain_spec
from tests.resources.jobs.cloud import IMAGE, ROLE
from tests.servers.sagemaker.faults import Faults
from tests.servers.sagemaker.hosting import Hosting, InstantContainer
from tests.servers.sagemaker.neighbours import CloudWatchLogs
from tests.servers.sagemaker.scripted import ManualClock, ScriptedRuntime
from tests.servers.sagemaker.server import LocalEndpoint, connect
from tests.servers.sagemaker.service import SageMaker


class Killed(BaseException):
    """kill -9: raised at the last boundary, and by all that is still touched."""


class Bench:
    """A service in this process over a store in a folder. `left_to_live`: boundaries until the actor is dead."""

    def __init__(self, root: Path) -> None:
        self.faults = Faults()
        self.hosting = Hosting(InstantContainer, self.faults)
        runtime = ScriptedRuntime(self.faults, ManualClock())
        service = SageMaker(
            runtime, faults=self.faults, images=frozenset({IMAGE}), roles=frozenset({ROLE}), hosting=self.hosting
        )
        self.endpoint = LocalEndpoint(service, CloudWatchLogs(self.faults))
        self.session = boto3.session.Session(region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x")
        connect(self.session, self.endpoint)
        self.clients: dict[str, Any] = {}  # a client takes longer to make than everything else
        self.left_to_live: int | None = None
        self.store = Bounded(str(root), {}, self.boundary)
        fill(self.store)

    def boundary(self) -> None:
        if self.left_to_live is not None:
            if self.left_to_live <= 0:
                raise Killed
            self.left_to_live -= 1

    def endpoints(self) -> Endpoints:
        return Endpoints(self.store, Backend(self))

    def spec(self, run: int, **changes: Any) -> EndpointSpec:
        return plain_spec(self.store, run, image=IMAGE, instance_type="ml.m5.xlarge", **changes)

    def left(self) -> list[str]:
        return self.hosting.left()

    def servers(self) -> int:
        return sum(1 for each in self.hosting.endpoints.values() if each.live is not None)


class Bounded(Store):
    """A store that hands over at every write."""

    def __init__(self, url: str, environment: Any, boundary: Callable[[], None]) -> None:
        super().__init__(url, environment)
        self.boundary = boundary

    def put(self, key: str, data: bytes) -> Any:
        self.boundary()
        found = super().put(key, data)
        self.boundary()
        return found

    def delete(self, keys: Any) -> None:
        self.boundary()
        super().delete(keys)
        self.boundary()


class BoundedClient(Client):
    """Hands over before and after every call."""

    def __init__(self, bench: Bench, environment: dict[str, str]) -> None:
        super().__init__(environment, calls_a_second=0.0)
        self.boundary = bench.boundary
        self.session = bench.session
        self._clients = bench.clients

    def call(self, what: str, service: str, operation: str, **request: Any) -> Any:
        self.boundary()
        found = super().call(what, service, operation, **request)
        self.boundary()
        return found


class Backend(SageMakerEndpoints):
    """Asks through the client that hands over."""

    def __init__(self, bench: Bench) -> None:
        environment = {"AWS_REGION": "eu-west-1", "DOCML_SAGEMAKER_ROLE_ARN": ROLE}
        super().__init__(bench.store, environment, calls_a_second=0.0, poll_seconds=0.0)
        self.client = BoundedClient(bench, environment)
        account = type("Remote", (), {"url": "s3://bucket/docml", "local_path": None})
        self.account = self._account(account)

    def _account(self, store: Any) -> Any:
        from resources.jobs.sagemaker.backend import read_account

        return read_account(store, self.environment)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return Bench(tmp_path)


def remove(bench: Bench) -> None:
    endpoints = bench.endpoints()
    for record in list(endpoints.records):
        endpoints.remove(record)


@pytest.mark.parametrize(
    ("action", "mode"),
    [
        ("deploy", "async"),
        ("move", "realtime"),
        ("undeploy", "async"),
        pytest.param("deploy", "realtime", marks=pytest.mark.slow),
        pytest.param("move", "async", marks=pytest.mark.slow),
        pytest.param("undeploy", "realtime", marks=pytest.mark.slow),
    ],
)
def test_kill_9_at_every_call_and_then_again(
    bench: Bench, action: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SageMakerEndpoints, "invoke", lambda self, spec, body: b"1")  # async answers are the contract's
    before, after = bench.spec(1, alias="live", mode=mode), bench.spec(2, alias="live", mode=mode)
    boundary, killed = 0, True
    while killed:
        if action != "deploy":
            deploy(bench, before)
        bench.left_to_live = boundary
        try:
            remove(bench) if action == "undeploy" else deploy(bench, after)
            killed = False
        except Killed:
            pass
        bench.left_to_live = None
        if action == "undeploy":
            remove(bench)
        else:
            assert deploy(bench, after).is_up
            assert bench.hosting.models.keys() == bench.hosting.configs.keys() == {part_name(after)}
            assert [(e.name, e.config, e.pending) for e in bench.hosting.endpoints.values()] == [
                ("live", part_name(after), None)
            ]
            (record,) = bench.endpoints().records
            assert (record.status, record.spec, record.previous) == ("up", after, None)
            remove(bench)
        assert bench.left() == []
        assert list(bench.endpoints().records) == []
        boundary += 1
    assert boundary > 12


def test_what_was_killed_and_never_asked_for_again_is_swept(bench: Bench) -> None:
    boundary, killed = 0, True
    later = module.datetime.now(module.UTC) + module.timedelta(hours=3)
    while killed:
        bench.left_to_live = boundary
        try:
            deploy(bench, bench.spec(1))
            killed = False
        except Killed:
            pass
        bench.left_to_live = None
        if killed:
            counts = any(record.status == "up" for record in bench.endpoints().records)
            for _ in range(4):
                bench.endpoints().sweep(later)
            assert counts or bench.left() == []
        remove(bench)
        boundary += 1


def test_an_alias_whose_move_was_killed_is_moved_back_by_the_sweep(bench: Bench) -> None:
    before, after = bench.spec(1, alias="live"), bench.spec(2, alias="live")
    later = module.datetime.now(module.UTC) + module.timedelta(hours=3)
    boundary, killed = 0, True
    while killed:
        deploy(bench, before)
        bench.left_to_live = boundary
        try:
            deploy(bench, after)
            killed = False
        except Killed:
            pass
        bench.left_to_live = None
        for _ in range(4):
            swept = bench.endpoints().sweep(later)
            assert all(each.stands and "goes on as before" in str(each) for each in swept)
        assert bench.endpoints().sweep(later) == []
        (found,) = bench.endpoints().list_endpoints()
        assert found.is_up
        assert found.record.previous is None
        assert answer(bench, "live")["sha256"] == found.record.spec.manifest_sha256
        remove(bench)
        boundary += 1
    assert boundary > 12


def test_what_takes_long_is_not_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RENEW_SECONDS", 0.0)
    later = module.datetime.now(module.UTC) + module.timedelta(hours=3)

    def slow(invoke: Callable[[bytes], bytes]) -> int:
        monkeypatch.setattr(records, "utc_now", later.isoformat)
        invoke(b"{}")
        assert bench.endpoints().sweep(later) == []
        return 1

    assert deploy(bench, bench.spec(1), check=slow).is_up


def test_a_damaged_record_hides_no_other_and_its_endpoint_is_left_alone(bench: Bench) -> None:
    for run in (1, 2):
        deploy(bench, bench.spec(run))
    bench.store.put(bench.spec(1).record_key, b"{")
    endpoints = bench.endpoints()
    assert [(found.name, found.is_up) for found in endpoints.list_endpoints()] == [(bench.spec(2).name, True)]
    assert endpoints.records.damaged().keys() == {bench.spec(1).name}
    with pytest.raises(UnknownEndpoint, match=r"the record of endpoint 1-EXP-1-contract-toy cannot be read .* mend it"):
        endpoints.invoke(bench.spec(1).name, b"{}")
    assert endpoints.sweep() == []
    assert bench.servers() == 2


def test_a_status_that_nobody_knows_is_a_failure_that_names_it(bench: Bench) -> None:
    for run in (1, 2):
        deploy(bench, bench.spec(run))
    bench.hosting.endpoints[bench.spec(1).name].status = "Hibernating"
    first, second = bench.endpoints().list_endpoints()
    assert first.state is not None
    assert first.state.status == "Failed"
    assert "is 'Hibernating' according to SageMaker; expected one of Creating, Updating" in first.state.reason
    assert second.is_up


@pytest.mark.parametrize(
    "operation",
    [
        "CreateModel",
        "CreateEndpointConfig",
        "PutMetricAlarm",
        "CreateEndpoint",
        "UpdateEndpoint",
        "DeleteEndpoint",
        "DeleteModel",
    ],
)
@pytest.mark.parametrize("fault", ["lost_response", "throttle", "server_error"])
def test_a_lost_answer_and_a_busy_service(bench: Bench, operation: str, fault: str) -> None:
    deploy(bench, bench.spec(1, alias="live"))
    bench.faults.order(operation, fault, 2)
    assert deploy(bench, bench.spec(2, alias="live")).is_up
    assert deploy(bench, bench.spec(1)).is_up
    assert answer(bench, "live")["sha256"] == bench.spec(2).manifest_sha256
    remove(bench)
    assert bench.left() == []


def test_an_update_that_is_rolled_back_is_a_failure(bench: Bench) -> None:
    for fault, said in (("alarm", "went into ALARM"), ("ping", "ping health check")):
        deploy(bench, bench.spec(1, alias="live"))
        bench.faults.order_job(fault)
        with pytest.raises(EndpointFailed, match=f"the update was rolled back .*{said}"):
            deploy(bench, bench.spec(2, alias="live"))
        (record,) = bench.endpoints().records
        assert (record.status, record.spec.run) == ("up", 1)
        assert bench.hosting.configs.keys() == {part_name(bench.spec(1, alias="live"))}
        assert deploy(bench, bench.spec(2, alias="live")).is_up
        remove(bench)
        assert bench.left() == []


def test_a_failing_ping_leaves_nothing(bench: Bench) -> None:
    bench.faults.order_job("ping")
    with pytest.raises(EndpointFailed, match="did not pass the ping health check"):
        deploy(bench, bench.spec(1))
    assert bench.left() == []


def test_one_that_hangs_in_creating_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SageMakerEndpoints, "patience_seconds", -1.0)
    bench.faults.order_job("stuck")
    with pytest.raises(EndpointFailed, match="is still Creating after"):
        deploy(bench, bench.spec(1))
    assert bench.left() == []


def test_what_is_seen_late_is_waited_for(bench: Bench) -> None:
    bench.faults.describe_lag = 3
    bench.faults.order("CreateEndpoint", "unseen_configuration", 2)
    assert deploy(bench, bench.spec(1)).is_up


def test_a_service_that_is_away_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHANGE_SECONDS", -1.0)
    bench.faults.order("CreateModel", "server_error", 99)
    with pytest.raises(EndpointUnreachable, match="run the same command again"):
        deploy(bench, bench.spec(1))
    (record,) = bench.endpoints().records
    assert record.status == "asked"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": None}, "has no image: set DOCKER_IMAGE"),
        ({"image": "other/image:1"}, "push the image"),
        ({"instance_type": "ml.nonsense"}, "InstanceType: found 'ml.nonsense'"),
    ],
)
def test_what_would_be_refused_is_refused_with_the_setting(bench: Bench, changes: dict[str, Any], said: str) -> None:
    with pytest.raises((EndpointRefused, EndpointFailed), match=said):
        deploy(bench, bench.spec(1).model_copy(update=changes))
    assert bench.left() == []
    assert list(bench.endpoints().records) == []


def test_quota_permission_and_missing_files_are_refusals(bench: Bench) -> None:
    for fault, said in (("limit", "ask for a higher quota"), ("denied", "lacks a permission")):
        bench.faults.order("CreateEndpoint", fault)
        with pytest.raises(EndpointRefused, match=said):
            deploy(bench, bench.spec(1))
        assert bench.left() == []
    bench.faults.order("CreateModel", "model_data")
    with pytest.raises(EndpointRefused, match="Could not find model data"):
        deploy(bench, bench.spec(1))


def test_the_requests_hold_no_secret_and_lead_back_to_the_run(bench: Bench) -> None:
    spec = bench.spec(1)
    deploy(bench, spec)
    model = bench.hosting.models[part_name(spec)]
    source = model["PrimaryContainer"]["ModelDataSource"]["S3DataSource"]
    assert source == {
        "S3Uri": f"s3://bucket/docml/{spec.folder}/",
        "S3DataType": "S3Prefix",
        "CompressionType": "None",
    }
    tags = {tag["Key"]: tag["Value"] for tag in bench.hosting.endpoints[spec.name].tags}
    assert tags["docml:experiment"] == spec.experiment
    assert (tags["docml:run"], tags["docml:model"]) == ("1", "toy")
    assert "x" not in json.dumps(model["PrimaryContainer"]["Environment"]).split('"')
