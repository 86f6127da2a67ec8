"""The HTTP side: /ping, /invocations, /metrics, /openapi.json. Every refusal is a status and one sentence; no traceback leaves.

Log lines are JSON and hold nothing of a document.
"""

import asyncio
import json
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from docml_trainer.serving.answers import Answers
from docml_trainer.serving.documents import (
    MAX_BYTES,
    TOO_LARGE,
    RequestError,
    SentDocument,
    may_name_references,
    read_documents,
)
from docml_trainer.serving.openapi import describe

MAX_WAITING = 256  # documents in the server; more are turned away
SMALL_BYTES = 100_000  # of a body that is read at once
MAX_DROPPED_BYTES = 100_000_000  # of a body that is too large
BODY_SECONDS = 60.0  # until a request's body must have arrived
Handler = Callable[[Request], Awaitable[Response]]


class Metrics:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("docml_requests", "Requests by status.", ["status"], registry=self.registry)
        self.seconds = Histogram("docml_request_seconds", "Time to an answer.", registry=self.registry)
        self.documents = Counter("docml_documents", "Documents answered, by label.", ["label"], registry=self.registry)
        self.waiting = Gauge("docml_waiting_documents", "Documents in the server.", registry=self.registry)
        buckets = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self.batches = Histogram(
            "docml_batch_documents", "Documents in a batch.", registry=self.registry, buckets=buckets
        )


class Server:
    """The application's state: the model once it is loaded, and what is in flight."""

    def __init__(
        self, load: Callable[[Callable[[int], None]], Answers], failed: Callable[[BaseException], None]
    ) -> None:
        self._load, self._failed = load, failed
        self.metrics = Metrics()
        self.answers: Answers | None = None
        self.in_flight = 0

    def application(self) -> Starlette:
        """/ping answers 503 until the model is loaded and verified."""
        routes = [
            Route("/ping", self._logged(self.ping), methods=["GET"]),
            Route("/invocations", self._logged(self.invocations), methods=["POST"]),
            Route("/metrics", self.show_metrics, methods=["GET"]),
            Route("/openapi.json", self._logged(self.show_description), methods=["GET"]),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: _http_error})

    @asynccontextmanager
    async def _lifespan(self, application: Starlette) -> AsyncIterator[None]:
        threading.Thread(target=self._load_model, name="loading", daemon=True).start()
        yield
        if self.answers is not None:
            await self.answers.close()

    def _load_model(self) -> None:
        started = time.monotonic()
        try:
            self.answers = self._load(self.metrics.batches.observe)
        except BaseException as error:
            self._failed(error)
            return
        log("info", "ready", seconds=round(time.monotonic() - started, 3), **self.answers.identity)

    async def ping(self, request: Request) -> Response:
        if self.answers is None:
            raise RequestError(503, "the model is being loaded; try again later")
        return JSONResponse({"status": "ready", **self.answers.identity})

    async def show_metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def show_description(self, request: Request) -> Response:
        return JSONResponse(describe(self._loaded().context, units=self._loaded().has_units))

    def _loaded(self) -> Answers:
        if self.answers is None:
            raise RequestError(503, "the model is being loaded; try again later")
        return self.answers

    async def invocations(self, request: Request) -> Response:
        answers = self._loaded()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(415, f"content type {ascii(kind)[:80]}; expected application/json")
        body = await _read_body(request)
        request.state.bytes = len(body)
        if len(body) <= SMALL_BYTES and not may_name_references(body):  # quicker than asking a thread
            documents, many = read_documents(body, answers.context, answers.references)
        else:
            documents, many = await asyncio.to_thread(read_documents, body, answers.context, answers.references)
        if self.in_flight + len(documents) > MAX_WAITING:
            raise RequestError(503, f"{self.in_flight} documents are waiting already; try again later")
        self.in_flight += len(documents)
        self.metrics.waiting.set(self.in_flight)
        request.state.documents = len(documents)
        try:
            if not many:
                return JSONResponse(await self._answer(answers, documents[0]))
            found = await asyncio.gather(*(self._answer(answers, sent) for sent in documents), return_exceptions=True)
        finally:
            self.in_flight -= len(documents)
            self.metrics.waiting.set(self.in_flight)
        for index, result in enumerate(found):
            if isinstance(result, RequestError):
                raise RequestError(result.status, f"document {index + 1}: {result}")
            if isinstance(result, BaseException):
                raise result
        return JSONResponse(found)

    async def _answer(self, answers: Answers, sent: SentDocument) -> dict[str, Any]:
        answer = await answers.answer(sent)
        self.metrics.documents.labels(answer["label"]).inc()
        return answer

    def _logged(self, handler: Handler) -> Handler:
        """The handler with its refusals as JSON, its time measured, and one line in the log."""

        async def handle(request: Request) -> Response:
            started = time.perf_counter()
            try:
                response = await handler(request)
            except RequestError as error:
                response = refusal(error.status, str(error))
            except ClientDisconnect:
                response = refusal(400, "the request was cut off before its end")
            except Exception as error:
                frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
                log("error", "failed", error=type(error).__name__, frames=frames[-8:])
                response = refusal(500, "the server failed on this request; its log says where")
            seconds = time.perf_counter() - started
            if request.url.path == "/invocations":
                self.metrics.requests.labels(str(response.status_code)).inc()
                self.metrics.seconds.observe(seconds)
            if request.url.path != "/ping" or response.status_code != 200:
                more = {key: value for key in ("bytes", "documents") if (value := getattr(request.state, key, None))}
                log(
                    "info",
                    "request",
                    path=request.url.path,
                    status=response.status_code,
                    seconds=round(seconds, 4),
                    **more,
                )
            return response

        return handle


async def _read_body(request: Request) -> bytes:
    """The body. RequestError 413 if it is too large, 400 if it does not arrive.

    What is too large is received and dropped, as far as that is bearable: a client that still sends does not see an answer.
    """
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= MAX_BYTES:
                    parts.append(part)
                elif size > MAX_DROPPED_BYTES:
                    break
                else:
                    parts.clear()
    except TimeoutError:
        raise RequestError(400, f"the body did not arrive within {BODY_SECONDS:g} s") from None
    if size > MAX_BYTES:
        raise RequestError(413, TOO_LARGE)
    return b"".join(parts)


def refusal(status: int, sentence: str) -> JSONResponse:
    """An answer that is none; 503 says when to come again."""
    headers = {"Retry-After": "1"} if status == 503 else {}
    text = sentence.encode(errors="replace").decode()
    return JSONResponse({"error": text}, status_code=status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return refusal(status, "expected GET /ping, POST /invocations, GET /metrics or GET /openapi.json")


def log(level: str, event: str, **fields: Any) -> None:
    """One JSON line."""
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "level": level, "event": event, **fields}
    print(json.dumps(line), flush=True)
