"""Endpoints on SageMaker, through boto3. It neither waits nor tries again; `endpoints.py` does."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from resources.endpoints.interface import (
    BusyEndpoint,
    EndpointFailed,
    EndpointRefused,
    EndpointSpec,
    EndpointState,
    Status,
)
from resources.endpoints.sagemaker import requests
from resources.endpoints.sagemaker.client import Client, Exists, Missing
from resources.endpoints.sagemaker.requests import ENDPOINT_TAG, PART, STORE_TAG, part_name
from resources.errors import MissingKey
from resources.jobs.interface import JobRefused, read_prices
from resources.jobs.sagemaker.backend import read_account
from resources.jobs.sagemaker.create import check_request
from resources.jobs.sagemaker.errors import advice
from resources.jobs.sagemaker.requests import Account
from resources.store import Store

CALLS_A_SECOND = 2.0
POLL_SECONDS = 10.0
PATIENCE_SECONDS = 3_600.0  # an endpoint can hang in Creating
ASYNC_SECONDS = 1_800.0  # an async endpoint without an instance wakes up first
SERVER_VARIABLES = ("DOCML_STORE", "DOCML_PRODUCTION_FILES", "DOCML_S3_PATH_STYLE", "DOCML_ENCODE_TIMEOUT_SECONDS")
STATUSES: dict[str, Status] = {
    "Creating": "Creating",
    "Updating": "Creating",
    "RollingBack": "Creating",
    "InService": "InService",
    "SystemUpdating": "InService",  # AWS patches it; it goes on answering
    "Failed": "Failed",
    "OutOfService": "Failed",
    "UpdateRollbackFailed": "Failed",
    "Deleting": "Deleting",
}


def read_status(found: Mapping[str, Any]) -> Status:
    """How an endpoint stands that DescribeEndpoint answered with. EndpointFailed for a status that docml does not know."""
    said = found["EndpointStatus"]
    if said not in STATUSES:
        raise EndpointFailed(
            f"endpoint {found['EndpointName']} is {said!r} according to SageMaker; expected one of "
            f"{', '.join(STATUSES)}: look at it in the console, and install a version of docml that knows this status"
        )
    return STATUSES[said]


def server_environment(store: Store, environment: Mapping[str, str]) -> dict[str, str]:
    """What the container is told of the deployment."""
    return {key: environment[key] for key in SERVER_VARIABLES if environment.get(key)} | {"DOCML_STORE": store.url}


def sagemaker_endpoints(store: Store, environment: Mapping[str, str]) -> "SageMakerEndpoints":
    """Endpoints on SageMaker, with the deployment's settings."""
    return SageMakerEndpoints(store, environment, calls_a_second=CALLS_A_SECOND, poll_seconds=POLL_SECONDS)


class SageMakerEndpoints:
    """Implements `EndpointBackend`."""

    name = "SageMaker"
    patience_seconds = PATIENCE_SECONDS

    def __init__(
        self, store: Store, environment: Mapping[str, str], *, calls_a_second: float, poll_seconds: float
    ) -> None:
        self.store = store
        self.environment = dict(environment)
        self.poll_seconds = poll_seconds
        self.client = Client(self.environment, calls_a_second)

    @cached_property
    def account(self) -> Account:
        """What requests need to know of the deployment."""
        return read_account(self.store, self.environment)

    @cached_property
    def where(self) -> str:
        """The AWS account and its region."""
        found = self.client.call("account", "sts", "get_caller_identity")
        return f"account {found['Account']}, region {self.client.session.region_name}"

    # -- EndpointBackend

    def check(self, spec: EndpointSpec) -> None:
        """EndpointRefused for what SageMaker would refuse later."""
        if not spec.image:
            raise EndpointRefused(
                f"{spec.describe()} has no image: set DOCKER_IMAGE in settings.ini, or DOCML_IMAGE (docml image push prints the URI)"
            )
        for operation, request in self.requests(spec).items():
            if operation.startswith("Create"):
                try:
                    check_request(operation, request)
                except JobRefused as error:
                    raise EndpointRefused(str(error)) from None
        found = self._describe(spec.name)
        if found is not None:
            self._check_owner(spec.name, found["EndpointArn"])

    def requests(self, spec: EndpointSpec) -> Mapping[str, dict[str, Any]]:
        """All requests by operation, in their order; none holds a secret."""
        return {
            "CreateModel": requests.model_request(spec, self.account, server_environment(self.store, self.environment)),
            "CreateEndpointConfig": requests.configuration_request(spec, self.account),
            "PutMetricAlarm": requests.error_alarm_request(spec),
            "CreateEndpoint": requests.endpoint_request(spec, self.account),
            "UpdateEndpoint": requests.update_request(spec),
        }

    def start(self, spec: EndpointSpec) -> None:
        """Create the endpoint or change it; whoever comes second does nothing."""
        what = spec.describe()
        present = self._describe(spec.name)
        if present is not None:
            self._check_owner(spec.name, present["EndpointArn"])
            status = present["EndpointStatus"]
            has_failed = read_status(present) == "Failed"
            pending = present.get("PendingDeploymentSummary", {}).get("EndpointConfigName")
            if part_name(spec) == (pending or present["EndpointConfigName"]) and not has_failed:
                if status == "Deleting":
                    raise BusyEndpoint(f"{what} is {status}")
                return
            if has_failed:
                self.client.call(what, "sagemaker", "delete_endpoint", EndpointName=spec.name)
                raise BusyEndpoint(f"{what} had failed, and is deleted first")
            if status != "InService":
                raise BusyEndpoint(f"{what} is {status}")
        asked = self.requests(spec)
        try:
            for operation, client_operation in (
                ("CreateModel", "create_model"),
                ("CreateEndpointConfig", "create_endpoint_config"),
            ):
                with contextlib.suppress(Exists):  # made before: the same name is the same content
                    self.client.call(what, "sagemaker", client_operation, **asked[operation])
            self.client.call(what, "cloudwatch", "put_metric_alarm", **asked["PutMetricAlarm"])
            if present is None:
                self.client.call(what, "sagemaker", "create_endpoint", **asked["CreateEndpoint"])
            else:
                self.client.call(what, "sagemaker", "update_endpoint", **asked["UpdateEndpoint"])
        except Missing as error:
            raise BusyEndpoint(f"{what}: its model or configuration is not visible yet") from error
        except Exists as error:
            raise BusyEndpoint(f"{what}: another process is creating it, too") from error

    def observe(self, name: str) -> EndpointState | None:
        """What Describe answers; None if there is no endpoint of this name."""
        found = self._describe(name)
        if found is None:
            return None
        part = PART.fullmatch(found["EndpointConfigName"])
        return EndpointState(
            status=read_status(found),
            configuration=part[2] if part else None,
            reason=advice(found["FailureReason"]) if found.get("FailureReason") else "",
            url=f"https://runtime.sagemaker.{self.client.session.region_name}.amazonaws.com/endpoints/{name}/invocations",
        )

    def finish(self, spec: EndpointSpec) -> None:
        """Scaling where it is asynchronous; then remove the parts that it had before."""
        if spec.mode == "async":
            self._scale(spec)
        found = self._describe(spec.name)
        if found is None or found["EndpointStatus"] != "InService" or found["EndpointConfigName"] != part_name(spec):
            return  # it is being changed again: whoever does so tidies up
        for part in self._parts(spec.name):
            if part != part_name(spec):
                self._delete_part(part)

    def _scale(self, spec: EndpointSpec) -> None:
        target, follow, wake = requests.scaling_requests(spec)
        what = f"scaling of {spec.describe()}"
        self.client.call(what, "application-autoscaling", "register_scalable_target", **target)
        self.client.call(what, "application-autoscaling", "put_scaling_policy", **follow)
        policy = self.client.call(what, "application-autoscaling", "put_scaling_policy", **wake)["PolicyARN"]
        self.client.call(what, "cloudwatch", "put_metric_alarm", **requests.backlog_alarm_request(spec, policy))

    def invoke(self, spec: EndpointSpec, body: bytes) -> bytes:
        """Ask the endpoint, through the store where it is asynchronous."""
        what = spec.describe()
        runtime = "sagemaker-runtime"
        if spec.mode == "realtime":
            found = self.client.call(
                what, runtime, "invoke_endpoint", EndpointName=spec.name, ContentType="application/json", Body=body
            )
            return bytes(found["Body"].read())
        key = f"{spec.data_key}/requests/{time.time_ns()}.json"
        self.store.put(key, body)
        asked = self.client.call(
            what,
            runtime,
            "invoke_endpoint_async",
            EndpointName=spec.name,
            ContentType="application/json",
            InputLocation=self.store.uri(key),
        )
        root = f"{self.store.url}/"
        answer, failure = (asked[name].removeprefix(root) for name in ("OutputLocation", "FailureLocation"))
        deadline = time.monotonic() + ASYNC_SECONDS
        while time.monotonic() < deadline:
            if self.store.exists(answer):
                return self.store.get(answer)
            try:
                said = self.store.get(failure).decode(errors="replace")
            except MissingKey:
                time.sleep(min(self.poll_seconds, 2.0))
                continue
            raise EndpointFailed(f"{what} refuses: {said[:500]}")
        raise EndpointFailed(
            f"{what} has left no answer at {asked['OutputLocation']} within {ASYNC_SECONDS / 60:.0f} minutes"
        )

    def remove(self, name: str) -> None:
        """Delete it with all its parts; what is absent is no error."""
        found = self._describe(name)
        if found is not None:
            self._check_owner(name, found["EndpointArn"])
            if found["EndpointStatus"] != "Deleting":
                with contextlib.suppress(Missing):  # there is none for a realtime one
                    target = requests.scalable_target(name)
                    self.client.call(name, "application-autoscaling", "deregister_scalable_target", **target)
                self.client.call(name, "sagemaker", "delete_endpoint", EndpointName=name)
            raise BusyEndpoint(f"endpoint {name} is being deleted")
        alarms = [requests.error_alarm(name), requests.backlog_alarm(name)]
        self.client.call(name, "cloudwatch", "delete_alarms", AlarmNames=alarms)
        for part in self._parts(name):
            self._delete_part(part)

    def names(self) -> list[str]:
        """Of all endpoints and of parts that are left over, sorted."""
        found = {entry["EndpointName"] for entry in self._list("Endpoint", "")}
        parts = {part for noun in ("EndpointConfig", "Model") for part in self._part_names(noun, "")}
        return sorted(found | {match[1] for part in parts if (match := PART.fullmatch(part))})

    def owns(self, name: str) -> bool:
        """Whether its tags name this store."""
        found = self._describe(name)
        if found is not None:
            return self._tags(found["EndpointArn"]).get(STORE_TAG) == self.account.store_url[:256]
        for noun in ("EndpointConfig", "Model"):
            for entry in self._list(noun, name):
                tags = self._tags(entry[f"{noun}Arn"])
                if tags.get(ENDPOINT_TAG) == name:
                    return tags.get(STORE_TAG) == self.account.store_url[:256]
        return False

    def usd_an_hour(self, spec: EndpointSpec) -> float | None:
        """While it stands; None if the price is unknown. An asynchronous one that is idle costs nothing."""
        price = read_prices(self.environment).get(spec.instance_type or "")
        return 0.0 if price is not None and spec.mode == "async" else price

    # -- helpers

    def _describe(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self.client.call(name, "sagemaker", "describe_endpoint", EndpointName=name)
        except Missing:
            return None
        return found

    def _tags(self, arn: str) -> dict[str, str]:
        try:
            found = self.client.call(arn, "sagemaker", "list_tags", ResourceArn=arn)["Tags"]
        except Missing:
            return {}
        return {tag["Key"]: tag["Value"] for tag in found}

    def _check_owner(self, name: str, arn: str) -> None:
        owner = self._tags(arn).get(STORE_TAG)
        if owner != self.account.store_url[:256]:
            raise EndpointRefused(
                f"the account has an endpoint {name} that belongs to {owner or 'somebody else'}, expected {self.account.store_url}: it "
                "is left alone; give another --alias, or ask its owner to delete it"
            )

    def _list(self, noun: str, name: str) -> Iterator[dict[str, Any]]:
        """Summaries of all models, configurations or endpoints whose names contain `name`."""
        operation = {"Endpoint": "list_endpoints", "EndpointConfig": "list_endpoint_configs", "Model": "list_models"}[
            noun
        ]
        narrowed = {"NameContains": name} if name else {}
        return self.client.pages(noun, "sagemaker", operation, f"{noun}s", MaxResults=100, **narrowed)

    def _part_names(self, noun: str, name: str) -> Iterator[str]:
        for entry in self._list(noun, name):
            yield entry[f"{noun}Name"]

    def _parts(self, name: str) -> list[str]:
        """Names of all configurations and models of an endpoint."""
        found = {part for noun in ("EndpointConfig", "Model") for part in self._part_names(noun, name)}
        return sorted(part for part in found if (match := PART.fullmatch(part)) and match[1] == name)

    def _delete_part(self, part: str) -> None:
        """Configuration and model; never one that an endpoint uses."""
        for operation, key in (("delete_endpoint_config", "EndpointConfigName"), ("delete_model", "ModelName")):
            with contextlib.suppress(Missing):
                self.client.call(part, "sagemaker", operation, **{key: part})
