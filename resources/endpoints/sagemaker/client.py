"""Calls to AWS for endpoints: one client a service, made at first use, at a steady pace; and what is done about what AWS refuses."""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from resources import aws
from resources.endpoints.interface import BusyEndpoint, EndpointFailed, EndpointRefused, EndpointUnreachable
from resources.jobs.backend import Busy, NameTaken, NoCapacity
from resources.jobs.interface import JobError, JobUnreachable
from resources.jobs.sagemaker.describe import Pacer
from resources.jobs.sagemaker.errors import NoSuchJob, translate

_EXISTS = re.compile(r"already existing|already exists", re.IGNORECASE)
_MISSING = re.compile(r"Could not find|No scalable target|ResourceNotFound", re.IGNORECASE)
_CHANGING = re.compile(r"in-progress|in progress|currently (being )?(used|updat)", re.IGNORECASE)


class Missing(Exception):
    """The service knows nothing of that name (yet)."""


class Exists(Exception):
    """The service has something of that name already."""


class Client:
    """One call at a time; it neither waits nor tries again."""

    def __init__(self, environment: Mapping[str, str], calls_a_second: float) -> None:
        self._environment = environment
        self._pacer = Pacer(calls_a_second)
        self._clients: dict[str, Any] = {}

    @cached_property
    def session(self) -> Any:
        """The boto3 session, made on first use."""
        return aws.session(self._environment)

    def call(self, what: str, service: str, operation: str, **request: Any) -> Any:
        """The answer. Exists, Missing, BusyEndpoint, or an EndpointError that names `what`."""
        self._pacer.turn()
        try:
            return getattr(self._client(service), operation)(**request)
        except Exception as error:
            raise explain(error, what) from error

    def pages(self, what: str, service: str, operation: str, key: str, **request: Any) -> Iterator[dict[str, Any]]:
        """The entries under `key` of all pages of a list."""
        while True:
            answer = self.call(what, service, operation, **request)
            yield from answer[key]
            if not answer.get("NextToken"):
                return
            request["NextToken"] = answer["NextToken"]

    def _client(self, service: str) -> Any:
        from botocore.config import Config

        if service not in self._clients:
            config = Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=70)
            self._clients[service] = self.session.client(
                service, endpoint_url=aws.endpoint(service, self._environment), config=config
            )
        return self._clients[service]


def explain(error: Exception, what: str) -> Exception:
    """A botocore error as this module's."""
    answer = getattr(error, "response", None)
    found = answer.get("Error", {}) if isinstance(answer, dict) else {}
    code, message = str(found.get("Code", "")), str(found.get("Message", ""))
    if code == "ModelError":
        original = (answer or {}).get("OriginalStatusCode")
        if original == 503:
            return BusyEndpoint(message)
        return EndpointFailed(f"{what} answers {original}: {(answer or {}).get('OriginalMessage') or message}")
    if _EXISTS.search(message):
        return Exists(what)
    # A CreateModel lacks files or an image, which do not come by waiting.
    may_appear = getattr(error, "operation_name", "") != "CreateModel"
    if may_appear and (_MISSING.search(message) or code in ("ObjectNotFoundException", "ResourceNotFound")):
        return Missing(what)
    if _CHANGING.search(message):
        return BusyEndpoint(f"{what}: {message}")
    translated = translate(error, what)
    match translated:
        case Busy():
            return BusyEndpoint(str(translated))
        case NameTaken():
            return Exists(what)
        case NoSuchJob():
            return Missing(what)
        case JobUnreachable():
            return EndpointUnreachable(str(translated))
        case JobError() | NoCapacity():
            return EndpointRefused(str(translated))
    return translated
