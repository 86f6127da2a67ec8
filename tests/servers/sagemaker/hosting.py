"""SageMaker's hosting: models, configurations, endpoints with blue/green updates, and what scales and watches them.

An endpoint moves on when somebody looks at it. Its containers are real processes that run the image's command `serve` over a relocated
/opt/ml, or ones that answer at once. Faults of an endpoint: `stuck` (stays in Creating), `ping` (never healthy), `alarm` (an update is rolled
back after traffic has moved).
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tests.servers.guard import guarded
from tests.servers.sagemaker.errors import ServiceError
from tests.servers.sagemaker.faults import Faults
from tests.servers.sagemaker.jobs import ACCOUNT, REGION
from tests.servers.sagemaker.neighbours import CloudWatchLogs
from tests.servers.sagemaker.transfer import Transfer, split

WORDS = {"endpoint": "endpoint", "endpoint-config": "endpoint configuration", "model": "model"}
HEALTHY_WITHIN_SECONDS = 200.0


def arn(kind: str, name: str) -> str:
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name}"


def could_not_find(kind: str, name: str) -> ServiceError:
    return ServiceError("ValidationException", f'Could not find {WORDS[kind]} "{arn(kind, name)}".')


def already_existing(kind: str, name: str) -> ServiceError:
    return ServiceError("ValidationException", f'Cannot create already existing {WORDS[kind]} "{arn(kind, name)}".')


class Container(Protocol):
    def state(self) -> str:
        """starting, healthy, or why it failed."""

    def invoke(self, body: bytes) -> tuple[int, bytes]: ...

    def stop(self) -> None: ...


class InstantContainer:
    """Healthy at once; answers with the configuration that it was started for."""

    def __init__(self, endpoint: str, model: dict[str, Any]) -> None:
        self.model = model

    def state(self) -> str:
        return "healthy"

    def invoke(self, body: bytes) -> tuple[int, bytes]:
        return 200, json.dumps(
            {"sha256": self.model["PrimaryContainer"]["Environment"]["DOCML_MANIFEST_SHA256"]}
        ).encode()

    def stop(self) -> None: ...


@dataclass
class ServedContainers:
    """Makes containers that are processes of the image."""

    work: Path
    transfer: Transfer
    logs: CloudWatchLogs
    images: dict[str, list[str]]
    environment: dict[str, str]
    running: "list[ServedContainer]" = field(default_factory=list)
    guard: ExitStack = field(default_factory=ExitStack)

    def __call__(self, endpoint: str, model: dict[str, Any]) -> "ServedContainer":
        if not self.running:
            self.guard.enter_context(guarded(self.work))
        container = ServedContainer(self, self.work / "endpoints" / f"{endpoint}-{len(self.running)}", endpoint, model)
        self.running.append(container)
        return container

    def close(self) -> None:
        for container in self.running:
            container.stop(signal.SIGKILL)
        self.guard.close()


class ServedContainer:
    """One process: /opt/ml/model from ModelDataSource, the command `serve`, the container's own port."""

    def __init__(self, containers: ServedContainers, folder: Path, endpoint: str, model: dict[str, Any]) -> None:
        definition = model["PrimaryContainer"]
        self.folder, self.begun, self.problem = folder, time.monotonic(), ""
        self.process: subprocess.Popen[str] | None = None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        try:
            source = definition["ModelDataSource"]["S3DataSource"]
            containers.transfer.download_prefix(source["S3Uri"], folder / "model")
        except FileNotFoundError as error:
            self.problem = f"Unable to locate at least one S3 object: {error}"
            return
        environment = containers.environment | definition.get("Environment", {})
        environment |= {
            "SAGEMAKER_BASE_DIR": str(folder),
            "SAGEMAKER_BIND_TO_PORT": str(self.port),
            "PYTHONUNBUFFERED": "1",
        }
        self.process = subprocess.Popen(
            [*containers.images[definition["Image"]], "serve"],
            env=environment | {"DOCML_SERVE_HOST": "127.0.0.1"},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        group = f"/aws/sagemaker/Endpoints/{endpoint}"
        self.reader = threading.Thread(target=self._pump, args=(containers.logs, group), daemon=True)
        self.reader.start()

    def _pump(self, logs: CloudWatchLogs, group: str) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                logs.write(group, f"main/i-{self.port}", line.rstrip("\n") or " ")

    def state(self) -> str:
        if self.process is None:
            return self.problem
        if self.process.poll() is not None or time.monotonic() - self.begun > HEALTHY_WITHIN_SECONDS:
            return (
                "The primary container for production variant main did not pass the ping health check. Please check CloudWatch logs "
                "for this endpoint."
            )
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=2) as response:
                return "healthy" if response.status == 200 else "starting"
        except OSError:
            return "starting"

    def invoke(self, body: bytes) -> tuple[int, bytes]:
        request = Request(f"http://127.0.0.1:{self.port}/invocations", body, {"content-type": "application/json"})
        try:
            with urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except HTTPError as error:
            return error.code, error.read()

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join(10)


@dataclass
class Endpoint:
    """One endpoint: what it answers with, and what it is on its way to."""

    name: str
    config: str
    tags: list[dict[str, str]]
    created: float
    status: str = "Creating"
    live: Container | None = None
    coming: Container | None = None
    pending: str | None = None
    fault: str = ""
    reason: str = ""
    unseen_describes: int = 0
    looks: int = 0


class Hosting:
    """See the module's docstring. `deleting_looks`: for so many looks an endpoint is Deleting."""

    def __init__(
        self, start: Callable[[str, dict[str, Any]], Container], faults: Faults, transfer: Transfer | None = None
    ) -> None:
        self.start, self.faults, self.transfer = start, faults, transfer
        self.models: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.alarms: dict[str, dict[str, Any]] = {}
        self.targets: dict[str, dict[str, Any]] = {}
        self.policies: dict[str, dict[str, Any]] = {}
        self.deleting_looks = 1
        self.lock = threading.RLock()

    def left(self) -> list[str]:
        """Names of all that exists."""
        return sorted([*self.models, *self.configs, *self.endpoints, *self.alarms, *self.targets, *self.policies])

    def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer; None if it is no operation of hosting."""
        method = getattr(self, f"_{operation}", None)
        if method is None:
            return None
        with self.lock:
            answer: dict[str, Any] = method(request)
            return answer

    # -- models and configurations

    def _CreateModel(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._create(self.models, "model", request["ModelName"], request, "ModelArn")

    def _CreateEndpointConfig(self, request: dict[str, Any]) -> dict[str, Any]:
        for variant in request["ProductionVariants"]:
            if variant["ModelName"] not in self.models:
                raise could_not_find("model", variant["ModelName"])
        name = request["EndpointConfigName"]
        return self._create(self.configs, "endpoint-config", name, request, "EndpointConfigArn")

    def _create(self, found: dict[str, Any], kind: str, name: str, request: Any, key: str) -> dict[str, Any]:
        if name in found:
            raise already_existing(kind, name)
        found[name] = request
        return {key: arn(kind, name)}

    def _DeleteModel(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.models.pop(request["ModelName"], None) is None:
            raise could_not_find("model", request["ModelName"])
        return {}

    def _DeleteEndpointConfig(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["EndpointConfigName"]
        for endpoint in self.endpoints.values():
            # The service lets one do so, and the endpoint can never be changed again.
            assert name not in (endpoint.config, endpoint.pending), f"{name} is in use by {endpoint.name}"
        if self.configs.pop(name, None) is None:
            raise could_not_find("endpoint-config", name)
        return {}

    def _ListModels(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._page(self.models, "model", "Model", request)

    def _ListEndpointConfigs(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._page(self.configs, "endpoint-config", "EndpointConfig", request)

    def _ListEndpoints(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._page(self.endpoints, "endpoint", "Endpoint", request)

    def _page(self, found: dict[str, Any], kind: str, noun: str, request: dict[str, Any]) -> dict[str, Any]:
        names = sorted(name for name in found if request.get("NameContains", "") in name)
        start, size = int(request.get("NextToken", 0)), request.get("MaxResults", 10)
        entries = [
            {f"{noun}Name": name, f"{noun}Arn": arn(kind, name), "CreationTime": 0.0}
            | ({"EndpointStatus": found[name].status, "LastModifiedTime": 0.0} if kind == "endpoint" else {})
            for name in names[start : start + size]
        ]
        more = {"NextToken": str(start + size)} if start + size < len(names) else {}
        return {f"{noun}s": entries, **more}

    def tags_of(self, resource: str) -> list[dict[str, str]] | None:
        """Of a model, configuration or endpoint; None if it is something else."""
        kind, _, name = resource.rpartition(":")[2].partition("/")
        found: dict[str, Any] | None = {
            "model": self.models,
            "endpoint-config": self.configs,
            "endpoint": self.endpoints,
        }.get(kind)
        if found is None:
            return None
        if name not in found:
            raise could_not_find(kind, name)
        entry = found[name]
        return list(entry.tags if kind == "endpoint" else entry.get("Tags", []))

    # -- endpoints

    def _CreateEndpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        name, config = request["EndpointName"], request["EndpointConfigName"]
        if name in self.endpoints:
            raise already_existing("endpoint", name)
        endpoint = Endpoint(name, config, list(request.get("Tags", [])), time.time())
        endpoint.coming = self._containers(name, config)
        endpoint.unseen_describes = self.faults.describe_lag
        endpoint.fault = self._fault()
        self.endpoints[name] = endpoint
        return {"EndpointArn": arn("endpoint", name)}

    def _UpdateEndpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        endpoint = self._find(request["EndpointName"])
        self._settled(endpoint)
        for alarm in request.get("DeploymentConfig", {}).get("AutoRollbackConfiguration", {}).get("Alarms", []):
            if alarm["AlarmName"] not in self.alarms:
                raise ServiceError("ValidationException", f"Alarm {alarm['AlarmName']} does not exist.")
        endpoint.coming = self._containers(endpoint.name, request["EndpointConfigName"])
        endpoint.pending, endpoint.status, endpoint.reason = request["EndpointConfigName"], "Updating", ""
        endpoint.fault = self._fault()
        return {"EndpointArn": arn("endpoint", endpoint.name)}

    def _fault(self) -> str:
        return next((fault for fault in ("stuck", "ping", "alarm") if self.faults.job(fault)), "")

    def _containers(self, name: str, config: str) -> Container:
        if config not in self.configs:
            raise could_not_find("endpoint-config", config)
        model = self.configs[config]["ProductionVariants"][0]["ModelName"]
        if model not in self.models:
            raise could_not_find("model", model)
        return self.start(name, self.models[model])

    @staticmethod
    def _settled(endpoint: Endpoint) -> None:
        if endpoint.status in ("Creating", "Updating", "Deleting"):
            raise ServiceError(
                "ValidationException", f'Cannot update in-progress endpoint "{arn("endpoint", endpoint.name)}".'
            )

    def _DeleteEndpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        endpoint = self._find(request["EndpointName"])
        if endpoint.status == "Updating":
            self._settled(endpoint)
        endpoint.status = "Deleting"
        return {}

    def _DescribeEndpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        endpoint = self._find(request["EndpointName"])
        if endpoint.unseen_describes:
            endpoint.unseen_describes -= 1
            raise could_not_find("endpoint", endpoint.name)
        if endpoint.status == "Deleting" and endpoint.looks >= self.deleting_looks:
            for container in (endpoint.live, endpoint.coming):
                if container is not None:
                    container.stop()
            del self.endpoints[endpoint.name]
            raise could_not_find("endpoint", endpoint.name)
        answer = {
            "EndpointName": endpoint.name,
            "EndpointArn": arn("endpoint", endpoint.name),
            "EndpointConfigName": endpoint.config,
            "EndpointStatus": endpoint.status,
            "CreationTime": endpoint.created,
            "LastModifiedTime": endpoint.created,
        }
        if endpoint.pending:
            answer["PendingDeploymentSummary"] = {"EndpointConfigName": endpoint.pending}
        if endpoint.reason:
            answer["FailureReason"] = endpoint.reason
        endpoint.looks = endpoint.looks + 1 if endpoint.status == "Deleting" else 0
        self._advance(endpoint)
        return answer

    def _find(self, name: str) -> Endpoint:
        if name not in self.endpoints:
            raise could_not_find("endpoint", name)
        return self.endpoints[name]

    def _advance(self, endpoint: Endpoint) -> None:
        """What has come of the containers that are on their way."""
        if endpoint.coming is None or endpoint.status not in ("Creating", "Updating") or endpoint.fault == "stuck":
            return
        state = endpoint.coming.state() if endpoint.fault != "ping" else "did not pass the ping health check"
        if state == "starting":
            return
        if state == "healthy" and endpoint.fault == "alarm":
            state = "One or more alarms went into ALARM; the deployment was rolled back"
        if state == "healthy":
            if endpoint.live is not None:
                endpoint.live.stop()
            endpoint.live, endpoint.config = endpoint.coming, endpoint.pending or endpoint.config
            endpoint.status = "InService"
        else:
            endpoint.coming.stop()
            endpoint.reason = state
            endpoint.status = "InService" if endpoint.live is not None else "Failed"
        endpoint.coming = endpoint.pending = None

    # -- answers

    def invoke(self, name: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """InvokeEndpoint: (status, headers, body)."""
        with self.lock:
            live = self._in_service(name)
        status, answer = live.invoke(body)
        if status == 200:
            return 200, {"Content-Type": "application/json"}, answer
        content = {
            "OriginalStatusCode": status,
            "OriginalMessage": answer.decode(),
            "Message": f"Received error {status}",
        }
        return 424, {"Content-Type": "application/json", "x-amzn-ErrorType": "ModelError"}, json.dumps(content).encode()

    def invoke_async(self, name: str, location: str) -> tuple[int, dict[str, str], bytes]:
        """InvokeEndpointAsync, answered before the caller asks for the output."""
        with self.lock:
            live = self._in_service(name)
            output = self.configs[self.endpoints[name].config]["AsyncInferenceConfig"]["OutputConfig"]
        assert self.transfer is not None
        bucket, key = split(location)
        status, answer = live.invoke(self.transfer.client.get_object(Bucket=bucket, Key=key)["Body"].read())
        places = {
            place: f"{output[path]}/{time.time_ns()}.out"
            for place, path in (
                ("X-Amzn-SageMaker-OutputLocation", "S3OutputPath"),
                ("X-Amzn-SageMaker-FailureLocation", "S3FailurePath"),
            )
        }
        bucket, key = split(places[f"X-Amzn-SageMaker-{'Output' if status == 200 else 'Failure'}Location"])
        self.transfer.client.put_object(Bucket=bucket, Key=key, Body=answer)
        return 202, {**places, "Content-Type": "application/json"}, b"{}"

    def _in_service(self, name: str) -> Container:
        endpoint = self.endpoints.get(name)
        if endpoint is None or endpoint.live is None or endpoint.status == "Deleting":
            raise ServiceError("ValidationError", f"Endpoint {name} of account {ACCOUNT} not found.")
        return endpoint.live

    # -- alarms and scaling

    def _PutMetricAlarm(self, request: dict[str, Any]) -> dict[str, Any]:
        self.alarms[request["AlarmName"]] = request
        return {}

    def _DeleteAlarms(self, request: dict[str, Any]) -> dict[str, Any]:
        for name in request["AlarmNames"]:
            self.alarms.pop(name, None)
        return {}

    def _RegisterScalableTarget(self, request: dict[str, Any]) -> dict[str, Any]:
        self._find(request["ResourceId"].split("/")[1])
        self.targets[request["ResourceId"]] = request
        return {}

    def _PutScalingPolicy(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["ResourceId"] not in self.targets:
            raise ServiceError("ObjectNotFoundException", "No scalable target registered for this resource.")
        self.policies[request["PolicyName"]] = request
        policy = f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:scalingPolicy:0:policyName/{request['PolicyName']}"
        return {"PolicyARN": policy, "Alarms": []}

    def _DeregisterScalableTarget(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.targets.pop(request["ResourceId"], None) is None:
            raise ServiceError("ObjectNotFoundException", "No scalable target found for this resource.")
        for name in [n for n, policy in self.policies.items() if policy["ResourceId"] == request["ResourceId"]]:
            del self.policies[name]
        return {}
