"""The services beside SageMaker that its jobs and their followers use: CloudWatch Logs, Secrets Manager, STS."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.servers.sagemaker.errors import ServiceError
from tests.servers.sagemaker.faults import Faults
from tests.servers.sagemaker.jobs import ACCOUNT, REGION


@dataclass
class LogEvent:
    at: float  # seconds
    message: str


@dataclass
class CloudWatchLogs:
    """Log groups of streams. Events become visible `faults.log_lag` seconds after they were written."""

    faults: Faults
    clock: Callable[[], float] = time.time
    page: int = 1000
    groups: dict[str, dict[str, list[LogEvent]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, group: str, stream: str, message: str) -> None:
        with self.lock:
            events = self.groups.setdefault(group, {}).setdefault(stream, [])
            events.append(LogEvent(self.clock(), message))

    def open(self, group: str, stream: str) -> None:
        with self.lock:
            self.groups.setdefault(group, {}).setdefault(stream, [])

    def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        if operation == "DescribeLogStreams":
            return self._describe_streams(request)
        if operation == "GetLogEvents":
            return self._get_events(request)
        if operation == "FilterLogEvents":
            return self._filter_events(request)
        raise ServiceError("UnknownOperationException", f"{operation} is not served here")

    def _group(self, name: str) -> dict[str, list[LogEvent]]:
        if name not in self.groups:
            raise ServiceError("ResourceNotFoundException", "The specified log group does not exist.")
        return self.groups[name]

    def _visible(self, events: list[LogEvent]) -> list[LogEvent]:
        horizon = self.clock() - self.faults.log_lag
        return [event for event in events if event.at <= horizon]

    def _describe_streams(self, request: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            group = self._group(request["logGroupName"])
            names = sorted(name for name in group if name.startswith(request.get("logStreamNamePrefix", "")))
        start = int(request.get("nextToken", 0))
        end = start + request.get("limit", 50)
        answer: dict[str, Any] = {"logStreams": [{"logStreamName": name} for name in names[start:end]]}
        if end < len(names):
            answer["nextToken"] = str(end)
        return answer

    def _get_events(self, request: dict[str, Any]) -> dict[str, Any]:
        """Forward tokens `f/<n>`: the same token is answered as long as there is nothing new."""
        with self.lock:
            group = self._group(request["logGroupName"])
            if request["logStreamName"] not in group:
                raise ServiceError("ResourceNotFoundException", "The specified log stream does not exist.")
            events = self._visible(group[request["logStreamName"]])
        token = request.get("nextToken")
        start = int(token.partition("/")[2]) if token else 0
        chosen = events[start : start + min(request.get("limit", self.page), self.page)]
        return {
            "events": [self._shown(event) for event in chosen],
            "nextForwardToken": f"f/{start + len(chosen)}",
            "nextBackwardToken": f"b/{start}",
        }

    def _filter_events(self, request: dict[str, Any]) -> dict[str, Any]:
        prefix = request.get("logStreamNamePrefix", "")
        with self.lock:
            group = self._group(request["logGroupName"])
            events = [
                (event.at, stream, event)
                for stream, written in group.items()
                if stream.startswith(prefix)
                for event in self._visible(written)
            ]
        events.sort(key=lambda entry: entry[:2])
        start = int(request.get("nextToken", 0))
        end = start + min(request.get("limit", self.page), self.page)
        answer: dict[str, Any] = {
            "events": [self._shown(event) | {"logStreamName": stream} for _, stream, event in events[start:end]]
        }
        if end < len(events):
            answer["nextToken"] = str(end)
        return answer

    def _shown(self, event: LogEvent) -> dict[str, Any]:
        at = int((event.at + self.faults.clock_skew) * 1000)
        return {"timestamp": at, "ingestionTime": at, "message": event.message}


@dataclass
class SecretsManager:
    """Secrets by name: JSON texts."""

    secrets: dict[str, str] = field(default_factory=dict)

    def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        if operation != "GetSecretValue":
            raise ServiceError("UnknownOperationException", f"{operation} is not served here")
        name = request["SecretId"]
        if name not in self.secrets:
            raise ServiceError("ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
        arn = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{name}-AbCdEf"
        return {"ARN": arn, "Name": name, "SecretString": self.secrets[name]}


def caller_identity(account: str = ACCOUNT) -> str:
    """STS GetCallerIdentity's XML answer."""
    return (
        '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
        f"<Arn>arn:aws:iam::{account}:user/tests</Arn><UserId>AIDAEXAMPLE</UserId><Account>{account}</Account>"
        "</GetCallerIdentityResult><ResponseMetadata><RequestId>0</RequestId></ResponseMetadata>"
        "</GetCallerIdentityResponse>"
    )
