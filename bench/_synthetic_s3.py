"""An S3 endpoint that does nothing, after a fixed delay: what is left is the client and the latency.

Buckets: `production` holds `<guid>/raw_text.json`, `research` the same below an experiment's versions (or nothing). Copies and
heads succeed. Run as a program: it serves on the port that it prints until its stdin closes.
"""

import asyncio
import bisect
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

ETAG = "5d41402abc4b2a76b9719d911017c592"
SIZE = 5000
FILE = "raw_text.json"
BASE = "EXP-1/data/reconciled_artifacts"
PAGE = 1000
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "AWS_REGION": "us-east-1",
    "DOCML_S3_PATH_STYLE": "true",
}


def guids(count: int) -> list[str]:
    """The same random GUIDs every time, sorted."""
    numbers = random.Random(1)
    return sorted(
        f"{numbers.getrandbits(32):08x}-{i:04x}-4000-8000-{numbers.getrandbits(48):012x}" for i in range(count)
    )


class Content:
    """The keys of a bucket, page by page."""

    def __init__(self, names: list[str], prefix: str, tail: str) -> None:
        self.names, self.prefix, self.tail = names, prefix, tail

    def page(self, query: dict[str, list[str]]) -> bytes:
        if "continuation-token" in query:
            start = int(query["continuation-token"][0])
        else:
            after = query.get("start-after", [""])[0]
            if after.startswith(self.prefix):
                after = after.removeprefix(self.prefix)
                start = (
                    bisect.bisect_right(self.names, after.partition("/")[0])
                    if "/" in after
                    else bisect.bisect_left(self.names, after)
                )
            else:
                start = 0
        wanted = query.get("prefix", [""])[0]
        names = self.names[start : start + PAGE] if self.prefix.startswith(wanted) or not wanted else []
        end = start + len(names)
        rows = "".join(
            f"<Contents><Key>{self.prefix}{name}{self.tail}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{ETAG}&quot;</ETag><Size>{SIZE}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for name in names
        )
        more = bool(names) and end < len(self.names)
        token = f"<NextContinuationToken>{end}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<KeyCount>{len(names)}</KeyCount><MaxKeys>{PAGE}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}"
            "</ListBucketResult>"
        ).encode()


COPIED = (
    '<CopyObjectResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><LastModified>2026-01-01T00:00:00.000Z</LastModified>'
    f'<ETag>"{ETAG}"</ETag></CopyObjectResult>'
).encode()


class Endpoint(asyncio.Protocol):
    """One connection."""

    def __init__(self, delay: float, buckets: dict[str, Content]) -> None:
        self.delay, self.buckets, self.received = delay, buckets, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].decode("latin-1")
            at = head.lower().find("content-length:")
            length = int(head[at + 15 :].split("\r\n", 1)[0]) if at >= 0 else 0
            if len(self.received) < end + 4 + length:
                return
            self.received = self.received[end + 4 + length :]
            answer = self.answer(*head.split(" ", 2)[:2])
            asyncio.get_running_loop().call_later(self.delay, self.write, answer)

    def answer(self, method: str, target: str) -> bytes:
        parts = urlsplit(target)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        if method == "GET" and not key:
            content = self.buckets.get(bucket, Content([], "", ""))
            return _response(content.page(parse_qs(parts.query)))
        if method == "HEAD":
            return _response(b"", f"Content-Length: {SIZE}")
        return _response(COPIED)

    def write(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)  # type: ignore[attr-defined]


def _response(body: bytes, length: str = "") -> bytes:
    head = (
        f'HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nETag: "{ETAG}"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n'
        f"{length or f'Content-Length: {len(body)}'}\r\n\r\n"
    )
    return head.encode() + body


async def serve(delay: float, count: int, version: str) -> None:
    names = guids(count)
    buckets = {"production": Content(names, "", f"/{FILE}")}
    if version:
        buckets["research"] = Content(names, f"{BASE}/", f"/{version}/{FILE}")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Endpoint(delay, buckets), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def synthetic_s3(delay: float, count: int = 0, version: str = "") -> Iterator[dict[str, str]]:
    """Start the server in a process of its own; the environment of its clients.

    delay: seconds before every answer; count: artifacts; version: of the ones that `research` holds, none: it is empty.
    """
    command = [sys.executable, str(Path(__file__)), str(delay), str(count), version]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        yield {**ENVIRONMENT, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}"}
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(serve(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
    except ModuleNotFoundError:
        asyncio.run(serve(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
