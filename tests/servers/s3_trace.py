"""A proxy before the tests' S3 server that keeps which IAM actions its clients needed, and denies what their role may not.

Signatures cover the Host header, which is passed on as it came.
"""

import http.client
import http.server
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, unquote, urlsplit

from tests.servers.s3 import S3Server

DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass(frozen=True)
class Needed:
    """An action on a resource; `prefix` is what a listing asked for."""

    action: str
    resource: str
    prefix: str = ""


@dataclass
class Trace:
    """The server behind the proxy, what was needed so far, and what of it was denied."""

    server: S3Server
    needed: set[Needed] = field(default_factory=set)
    denied: set[Needed] = field(default_factory=set)
    allows: Callable[[Needed], bool] = lambda need: True


def actions(method: str, target: str, headers: dict[str, str], body: bytes) -> Iterator[Needed]:
    """What a request needs (Actions, resources, and condition keys for Amazon S3; Service Authorization Reference)."""
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    on_bucket, on_object = f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/{key}"
    if not key:
        if method == "POST" and "delete" in query:
            for name in ElementTree.fromstring(body).iter():
                if name.tag.rpartition("}")[2] == "Key":
                    yield Needed("s3:DeleteObject", f"{on_bucket}/{name.text}")
        elif method == "GET" and "location" in query:
            yield Needed("s3:GetBucketLocation", on_bucket)
        elif method in ("GET", "HEAD"):
            yield Needed("s3:ListBucket", on_bucket, query.get("prefix", [""])[0])
        return
    if method in ("GET", "HEAD"):
        yield Needed("s3:ListMultipartUploadParts" if "uploadId" in query else "s3:GetObject", on_object)
    elif method == "DELETE":
        yield Needed("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", on_object)
    else:
        yield Needed("s3:PutObject", on_object)
        source = headers.get("x-amz-copy-source")
        if source:
            copied = f"arn:aws:s3:::{unquote(source).lstrip('/')}"
            yield Needed("s3:GetObject", copied)
            if headers.get("x-amz-tagging-directive", "COPY") == "COPY":  # of objects that have tags
                yield Needed("s3:GetObjectTagging", copied)
                yield Needed("s3:PutObjectTagging", on_object)


@contextmanager
def traced(server: S3Server) -> Iterator[Trace]:
    """A proxy on a free port until the block ends."""
    behind = urlsplit(server.endpoint)
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            lower = {name.lower(): value for name, value in headers.items()}
            needed = set(actions(self.command, self.path, lower, body))
            denied = {need for need in needed if not trace.allows(need)}
            with lock:
                trace.needed |= needed
                trace.denied |= denied
            if denied:
                self._send(403, [], DENIED)
                return
            connection = http.client.HTTPConnection(behind.hostname or "", behind.port, timeout=60)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body or None)
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            self._send(answer.status, answer.getheaders(), content)

        def _send(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            given = {name.lower(): value for name, value in headers}
            for name, value in headers:
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            is_head = self.command == "HEAD"
            self.send_header("Content-Length", given.get("content-length", "0") if is_head else str(len(content)))
            self.end_headers()
            self.wfile.write(b"" if is_head else content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            """A client that hangs up is no concern of the test."""

    proxy = Server(("127.0.0.1", 0), Handler)
    endpoint = f"http://127.0.0.1:{proxy.server_port}"
    environment = {**server.environment, "AWS_ENDPOINT_URL_S3": endpoint}
    trace = Trace(replace(server, endpoint=endpoint, environment=environment))
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield trace
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
