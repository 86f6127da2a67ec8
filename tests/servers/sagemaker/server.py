"""The endpoint: SageMaker with its runtime, CloudWatch, Application Auto Scaling, Secrets Manager and STS behind one port, or inside the process.

`LocalEndpoint` answers calls; `serve` puts it behind HTTP for other processes; `connect` answers the calls of a boto3
session without a socket. Every call is recorded in `calls` as (service, operation, request).
"""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from botocore.awsrequest import AWSResponse, HeadersDict

from tests.servers.sagemaker.errors import LostResponse, ServiceError
from tests.servers.sagemaker.neighbours import CloudWatchLogs, SecretsManager, caller_identity
from tests.servers.sagemaker.service import SageMaker

SERVICES = {
    "SageMaker": "sagemaker",
    "Logs_20140328": "logs",
    "secretsmanager": "secretsmanager",
    "AnyScaleFrontendService": "application-autoscaling",
    "GraniteServiceVersion20100801": "cloudwatch",
}
CONNECTED = (
    *("sagemaker", "sagemaker-runtime", "application-autoscaling", "cloudwatch"),
    *("logs", "secretsmanager", "sts"),
)
Answer = tuple[int, dict[str, str], bytes]


class LocalEndpoint:
    """The services together, with their faults."""

    def __init__(self, sagemaker: SageMaker, logs: CloudWatchLogs, secrets: SecretsManager | None = None) -> None:
        self.sagemaker = sagemaker
        self.logs = logs
        self.secrets = secrets or SecretsManager()
        self.faults = sagemaker.faults
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    def reply(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """(status, headers, body) for an HTTP request; LostResponse when the caller must not hear of it."""
        parts = path.strip("/").split("/")
        if parts[0] == "endpoints":
            return self._answer_runtime(parts[1], parts[2], headers, body)
        status, kind, answer = self.answer(headers.get("X-Amz-Target", ""), body)
        return status, {"Content-Type": kind}, answer

    def _answer_runtime(self, name: str, action: str, headers: Mapping[str, str], body: bytes) -> Answer:
        hosting = self.sagemaker.hosting
        assert hosting is not None
        operation = "InvokeEndpoint" if action == "invocations" else "InvokeEndpointAsync"
        self.calls.append(("sagemaker-runtime", operation, {"EndpointName": name}))
        try:
            self.faults.before(operation)
            if operation == "InvokeEndpoint":
                found = hosting.invoke(name, body)
            else:
                found = hosting.invoke_async(name, headers["X-Amzn-SageMaker-InputLocation"])
        except ServiceError as error:
            kind = {"Content-Type": "application/json", "x-amzn-ErrorType": error.code}
            return error.status, kind, json.dumps({"message": error.message}).encode()
        self.faults.after(operation)
        return found

    def answer(self, target: str, body: bytes) -> tuple[int, str, bytes]:
        """(status, content type, body) for a call; LostResponse when the caller must not hear of it."""
        if not target:
            return self._answer_query(body)
        service, _, operation = target.partition(".")
        request = json.loads(body or b"{}")
        self.calls.append((SERVICES.get(service, service), operation, request))
        try:
            self.faults.before(operation)
            result = self._serve(SERVICES.get(service, service), operation, request)
        except ServiceError as error:
            complaint = {"__type": error.code, "message": error.message}
            return error.status, "application/x-amz-json-1.1", json.dumps(complaint).encode()
        self.faults.after(operation)
        return 200, "application/x-amz-json-1.1", json.dumps(result).encode()

    def _serve(self, service: str, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        if service == "sagemaker":
            return self.sagemaker.call(operation, request)
        if service == "logs":
            return self.logs.call(operation, request)
        if service == "secretsmanager":
            return self.secrets.call(operation, request)
        if service in ("application-autoscaling", "cloudwatch") and self.sagemaker.hosting is not None:
            answer = self.sagemaker.hosting.call(operation, request)
            if answer is not None:
                return answer
        raise ServiceError("UnknownOperationException", f"{service}.{operation} is not served here")

    def _answer_query(self, body: bytes) -> tuple[int, str, bytes]:
        action = parse_qs(body.decode()).get("Action", [""])[0]
        self.calls.append(("sts", action, {}))
        if action != "GetCallerIdentity":
            return 400, "text/xml", b"<ErrorResponse><Error><Code>InvalidAction</Code></Error></ErrorResponse>"
        return 200, "text/xml", caller_identity(self.sagemaker.account).encode()


@contextlib.contextmanager
def serve(endpoint: LocalEndpoint) -> Iterator[str]:
    """The endpoint over HTTP on a free loopback port; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                status, headers, answer = endpoint.reply(self.path, dict(self.headers.items()), body)
            except LostResponse:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.send_header("x-amzn-RequestId", "0")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Raw:
    """The part of urllib3's response that botocore reads."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def stream(self, *_: object, **__: object) -> Iterator[bytes]:
        yield self.content

    def read(self, *_: object, **__: object) -> bytes:
        return self.content


def connect(session: Any, endpoint: LocalEndpoint) -> None:
    """Let `session` (boto3) be answered by `endpoint` inside this process. A lost response is a connection error."""
    from botocore.exceptions import ConnectionClosedError

    def before_send(request: Any, **_: Any) -> AWSResponse:
        headers = {k: v.decode() if isinstance(v, bytes) else v for k, v in request.headers.items()}
        body = request.body if isinstance(request.body, bytes) else (request.body or "").encode()
        try:
            status, kinds, answer = endpoint.reply(urlsplit(request.url).path, headers, body)
        except LostResponse as error:
            raise ConnectionClosedError(endpoint_url=request.url) from error
        return AWSResponse(request.url, status, HeadersDict(kinds), _Raw(answer))

    for service in CONNECTED:
        session.events.register(f"before-send.{service}", before_send)
