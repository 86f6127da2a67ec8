"""An S3 endpoint whose answers a test scripts: faults at the outermost edge, and a record of what was asked."""

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit


@dataclass
class Request:
    method: str
    path: str  # decoded, with a leading slash and no query
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """status 0: the connection is dropped without a word. A Content-Length above the body's: it is dropped within the answer."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


COPIED = Answer(
    200,
    b'<CopyObjectResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><LastModified>2026-01-01T00:00:00.000Z</LastModified>'
    b'<ETag>"5d41402abc4b2a76b9719d911017c592"</ETag></CopyObjectResult>',
)


def error(status: int, code: str, message: str = "scripted") -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())


@dataclass
class ScriptedS3:
    """endpoint, the requests so far, and the environment of a client."""

    endpoint: str
    requests: list[Request]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "eu-central-1",
        }


@contextmanager
def scripted_s3(answer: Callable[[Request], Answer]) -> Iterator[ScriptedS3]:
    """Serve `answer(request)` until the block ends."""
    requests: list[Request] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, unquote(parts.path), parts.query, headers, body)
            requests.append(request)
            said = answer(request)
            if said.status == 0:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(said.status)
            for name, value in {
                "ETag": '"5d41"',
                "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
                **said.headers,
            }.items():
                self.send_header(name, value)
            if "Content-Length" not in said.headers:
                self.send_header("Content-Length", str(len(said.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(said.body)
                self.close_connection |= int(said.headers.get("Content-Length", 0)) > len(said.body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield ScriptedS3(f"http://127.0.0.1:{server.server_port}", requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
