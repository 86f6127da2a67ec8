"""Sent documents -> encoded rows, in processes that can be ended: a function that hangs or dies costs one document, not the server.

Files that process_func makes are made anew, in the sandboxed worker of reconciliation; encode_data runs as it does in preparation.
"""

import asyncio
import fcntl
import itertools
import multiprocessing
import os
import pickle
import shutil
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from docml_contract.base import ProcessFuncBroken
from docml_contract.manifests import sha256_file
from docml_contract.sandbox import Worker
from docml_contract.untrusted_files import UntrustedFolder, find_misdeeds
from docml_trainer.errors import UserCodeError
from docml_trainer.inference.model import DeploymentFolder
from docml_trainer.preparation.pool import encoder_environment
from docml_trainer.serving.documents import RequestError, SentDocument
from docml_trainer.serving.encoder_process import (
    BROKEN,
    READY,
    ROW,
    SIZE_BYTES,
    UNITS,
    UNREADABLE,
    EncoderSettings,
    serve_encodings,
    write_files,
)

MAX_SECONDS = 50.0  # of one document: an endpoint gives a request 60 seconds
LOADING_SECONDS = 900.0  # for the experimenter's module, which may fetch a tokenizer
SCRATCH = "docml-serve-"  # begins the name of a server's folder
MEMORY = Path("/dev/shm")
MEMORY_ROOM = 1 << 28  # bytes; Docker gives a container 64 MB unless it is told otherwise
Row = dict[str, Any]  # feature -> array, as the collator takes it


class Encoders:
    """A few processes that encode one document at a time; more documents than processes wait."""

    def __init__(self, deployment: DeploymentFolder, count: int, seconds: float) -> None:
        self._scratch, self._hold = _make_scratch(deployment.context.has_process_func)
        self._encoders = [_Encoder(deployment, self._scratch / str(index), seconds) for index in range(count)]
        # The one that encoded last comes first: its memory is in the caches still.
        self._idle: asyncio.LifoQueue[_Encoder] = asyncio.LifoQueue()
        self._restarts: set[asyncio.Task[None]] = set()

    def start(self) -> dict[str, Any]:
        """Load the experimenter's module everywhere; the features that it declares. UserCodeError if that fails."""
        for encoder in self._encoders:
            encoder.start()
        for encoder in self._encoders:
            features = encoder.await_ready(LOADING_SECONDS)
            self._idle.put_nowait(encoder)
        return features

    async def encode(self, document: SentDocument) -> Row:
        """The document's row. RequestError 422 if its functions do not take it, 503 if no process is free for too long."""
        return _row(*await self._reply(document))

    async def encode_units(self, document: SentDocument) -> dict[str, Row | RequestError]:
        """The row of each of the document's units, or why it has none; RequestError as `encode`, where it is not about a unit."""
        kind, content = await self._reply(document)
        if kind != UNITS:
            raise _refusal(kind, content)
        for _, kind, said in content:
            if kind == BROKEN:
                raise _refusal(kind, said)
        return {unit: said if kind == ROW else _refusal(kind, said) for unit, kind, said in content}

    async def _reply(self, document: SentDocument) -> tuple[str, Any]:
        try:
            async with asyncio.timeout(MAX_SECONDS):
                encoder = await self._idle.get()
        except TimeoutError:
            raise RequestError(503, "all encoders were busy; try again later") from None
        try:
            return await encoder.ask(document)
        finally:
            if encoder.is_running:
                self._idle.put_nowait(encoder)
            else:  # whoever waits takes another one meanwhile
                task = asyncio.create_task(self._restart(encoder))
                self._restarts.add(task)
                task.add_done_callback(self._restarts.discard)

    async def _restart(self, encoder: "_Encoder") -> None:
        with suppress(RequestError):  # said to the next document that it gets
            await encoder.restart()
        self._idle.put_nowait(encoder)

    async def close(self) -> None:
        """End all processes, and remove what is left of documents."""
        for encoder in self._encoders:
            await encoder.close()
        shutil.rmtree(self._scratch, ignore_errors=True)
        os.close(self._hold)


def _row(kind: str, content: Any) -> Row:
    if kind != ROW:
        raise _refusal(kind, content)
    row: Row = content
    return row


def _refusal(kind: str, sentence: str) -> RequestError:
    return RequestError(500 if kind == BROKEN else 422, sentence)


class _Encoder:
    """One process for encode_data, and one for process_func where there is one; started again after one had to be ended."""

    def __init__(self, deployment: DeploymentFolder, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._settings = EncoderSettings(
            deployment.functions, deployment.encoding_context, deployment.encoding_task(1), deployment.has_units
        )
        self._folder.mkdir(mode=0o700)
        self._numbers = itertools.count()
        self._process: Any = None
        self._socket: socket.socket | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._sandbox: Worker | None = None
        if deployment.context.has_process_func:
            source = deployment.functions.read_text(encoding="utf-8")
            self._sandbox = Worker(folder / "sandbox", source, os.environ, timeout=seconds)

    def start(self) -> None:
        """Start the process."""
        context = multiprocessing.get_context("spawn")
        self._socket, theirs = socket.socketpair()
        self._process = context.Process(
            target=serve_encodings, args=(theirs, self._settings, self._folder), daemon=True
        )
        with encoder_environment(parallel=False):
            self._process.start()
        theirs.close()

    def await_ready(self, seconds: float) -> dict[str, Any]:
        """Wait until the module is loaded; the features that it declares. UserCodeError if that cannot be, RequestError 503 if it lasts."""
        assert self._socket is not None
        self._socket.settimeout(seconds)
        try:
            with self._socket.makefile("rb") as replies:
                kind, content = pickle.loads(replies.read(int.from_bytes(replies.read(SIZE_BYTES))))
        except TimeoutError:
            self._end()
            raise RequestError(503, "the encoder is still starting; try again later") from None
        except (EOFError, OSError):
            raise UserCodeError(f"the encoder ended while it was starting (exit code {self._end()})") from None
        if kind != READY:
            self._end()
            raise UserCodeError(content)
        features: dict[str, Any] = content
        return features

    @property
    def is_running(self) -> bool:
        """Whether it can be asked, as far as is known."""
        return self._process is not None and not (self._streams and self._streams[0].at_eof())

    async def restart(self) -> None:
        """RequestError if the process does not come up again."""
        await self._stop()
        try:
            await asyncio.to_thread(self.start)
            await asyncio.to_thread(self.await_ready, MAX_SECONDS)
        except UserCodeError as error:
            raise RequestError(500, str(error)) from None

    async def ask(self, document: SentDocument) -> tuple[str, Any]:
        """The process's reply about the document: its kind, and what belongs to it."""
        if not self.is_running:
            await self.restart()
        directory, files = self._folder / f"document-{next(self._numbers)}", document.files
        try:
            if self._sandbox is not None:
                await asyncio.to_thread(self._make_files, self._sandbox, document, directory)
                files = {}
            return await self._ask((document.guid, str(directory), files))
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def _make_files(self, sandbox: Worker, document: SentDocument, directory: Path) -> None:
        """The document's files, and those that process_func makes of them."""
        write_files(document.files, directory)
        before = {name: sha256_file(directory / name) for name in document.files}
        with UntrustedFolder(directory) as folder:
            try:
                outcome = sandbox.run({"artifact_guid": document.guid}, directory)
            except ProcessFuncBroken as error:
                raise RequestError(500, str(error).splitlines()[0]) from None
            complaint = outcome.error or "; ".join(find_misdeeds(folder, before))
        if complaint:
            raise RequestError(422, f"process_func does not take this document: {complaint}")

    async def _ask(self, task: tuple[str, str, Mapping[str, bytes]]) -> tuple[str, Any]:
        """The process's reply: its kind, and what belongs to it. If there is none the process is ended."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_unix_connection(sock=self._socket)
            reader, writer = self._streams
            async with asyncio.timeout(self._seconds):
                writer.write(pickle.dumps(task, pickle.HIGHEST_PROTOCOL))
                await writer.drain()
                size = int.from_bytes(await reader.readexactly(SIZE_BYTES))
                reply: tuple[str, Any] = pickle.loads(await reader.readexactly(size))
                return reply
        except TimeoutError:
            await self._stop()
            return UNREADABLE, f"encode_data has not returned within {self._seconds:g} s for this document"
        except (EOFError, OSError):
            return (
                UNREADABLE,
                f"encode_data ended its process (exit code {await self._stop(wait=0.2)}) at this document",
            )
        except BaseException:  # a reply that comes too late would be taken for the next document's
            await self._stop()
            raise

    async def _stop(self, wait: float = 0.0) -> Any:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()
        return await asyncio.to_thread(self._end, wait)

    def _end(self, wait: float = 0.0) -> Any:
        """End the process, which may end by itself within `wait` seconds; its exit code."""
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
        if process is None:
            return None
        process.join(wait)
        process.kill()
        process.join()
        return process.exitcode

    async def close(self) -> None:
        await self._stop()
        if self._sandbox is not None:
            await asyncio.to_thread(self._sandbox.close)


def _make_scratch(has_process_func: bool) -> tuple[Path, int]:
    """A folder for documents, and the open descriptor that holds it: in memory, where there is room, since a disk takes milliseconds
    for a file that lives for one.
    """
    room = shutil.disk_usage(MEMORY).free if os.access(MEMORY, os.W_OK) else 0
    in_memory = room > MEMORY_ROOM and not has_process_func  # what process_func leaves may be of any size
    place = MEMORY if in_memory else Path(tempfile.gettempdir())
    _remove_abandoned(place)
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=place))
        with suppress(FileNotFoundError):  # another server has found it before it was held
            hold = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(hold, fcntl.LOCK_EX)
            if scratch.exists():
                return scratch, hold
            os.close(hold)


def _remove_abandoned(place: Path) -> None:
    """Remove the folders that nobody holds: of servers that were killed together with the processes that would have removed them."""
    for folder in place.glob(f"{SCRATCH}*"):
        with suppress(OSError):  # it is gone, another user's, or held
            hold = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(hold)
