"""Sent documents -> encoded rows, in processes that can be ended: a function that hangs or dies costs one document, not the server.

Files that process_func makes are made anew, in the sandboxed worker of reconciliation; encode_data runs as it does in preparation.
"""

import gc
import multiprocessing
import os
import queue
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from docml_contract.base import ProcessFuncBroken
from docml_contract.file_names import is_pattern, matching
from docml_contract.manifests import sha256_file
from docml_contract.sandbox import Worker, find_misdeeds
from docml_trainer.errors import TrainerError, UserCodeError
from docml_trainer.inference.model import DeploymentFolder
from docml_trainer.serving.documents import RequestError, SentDocument

ROW, UNREADABLE, LEFT_OUT, BROKEN, READY = "row", "unreadable", "left out", "broken", "ready"
MAX_SECONDS = 50.0  # of one document: an endpoint gives a request 60 seconds
LOADING_SECONDS = 900.0  # for the experimenter's module, which may fetch a tokenizer
Row = dict[str, Any]  # feature -> array, as the collator takes it


class Encoders:
    """A few processes that encode one document at a time; more callers than processes wait."""

    def __init__(self, deployment: DeploymentFolder, count: int, seconds: float) -> None:
        self.count = count
        self._scratch = Path(tempfile.mkdtemp(prefix="docml-serve-"))
        self._idle: queue.Queue[_Encoder] = queue.Queue()
        self._encoders = [_Encoder(deployment, self._scratch / str(index), seconds) for index in range(count)]
        for encoder in self._encoders:
            self._idle.put(encoder)

    def start(self) -> dict[str, Any]:
        """Load the experimenter's module everywhere; the features that it declares. UserCodeError if that fails."""
        for encoder in self._encoders:
            encoder.start()
        for encoder in self._encoders:
            encoder.await_ready(time.monotonic() + LOADING_SECONDS)
        return self._encoders[0].features

    def encode(self, document: SentDocument, deadline: float) -> Row:
        """The document's row. RequestError 422 if its functions do not take it, 503 if it is asked after `deadline` (monotonic)."""
        if time.monotonic() > deadline:
            raise RequestError(503, "all encoders were busy; try again later")
        encoder = self._idle.get()
        try:
            return encoder.encode(document)
        finally:
            self._idle.put(encoder)

    def close(self) -> None:
        """End all processes, and remove what is left of documents."""
        for encoder in self._encoders:
            encoder.close()
        shutil.rmtree(self._scratch, ignore_errors=True)


class _Encoder:
    """One process for encode_data, and one for process_func where there is one; started again after one had to be ended."""

    def __init__(self, deployment: DeploymentFolder, folder: Path, seconds: float) -> None:
        self._deployment, self._folder, self._seconds = deployment, folder, seconds
        self._folder.mkdir(mode=0o700)
        self._process: Any = None
        self._connection: Connection | None = None
        self._ready = False
        self.features: dict[str, Any] = {}
        self._sandbox: Worker | None = None
        if deployment.context.has_process_func:
            source = deployment.functions.read_text(encoding="utf-8")
            self._sandbox = Worker(folder / "sandbox", source, os.environ, timeout=seconds)

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._replies = select.poll()
        self._replies.register(self._connection.fileno(), select.POLLIN)
        self._ready = False
        self._process = context.Process(target=_serve_encodings, args=(theirs, self._deployment), daemon=True)
        self._process.start()
        theirs.close()

    def await_ready(self, deadline: float) -> None:
        """Wait until the module is loaded. UserCodeError if it cannot be, RequestError 503 if it takes too long."""
        if self._ready:
            return
        kind, content = self._receive(deadline)
        if kind != READY:
            raise UserCodeError(content)
        self._ready, self.features = True, content

    def encode(self, document: SentDocument) -> Row:
        with self._files(document) as directory:
            self._process_files(document, directory)
            if self._process is None:
                self.start()
            self.await_ready(time.monotonic() + MAX_SECONDS)
            assert self._connection is not None
            try:
                self._connection.send((document.guid, str(directory)))
            except OSError:
                self._end()
                raise RequestError(503, "the encoder ended; try again") from None
            kind, content = self._receive(time.monotonic() + self._seconds)
        if kind == ROW:
            row: Row = content
            return row
        raise RequestError(500 if kind == BROKEN else 422, content)

    @contextmanager
    def _files(self, document: SentDocument) -> Iterator[Path]:
        directory = Path(tempfile.mkdtemp(prefix="document-", dir=self._folder))
        try:
            for name, content in document.files.items():
                (directory / name).write_bytes(content)
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _process_files(self, document: SentDocument, directory: Path) -> None:
        if self._sandbox is None:
            return
        before = {name: sha256_file(directory / name) for name in document.files}
        try:
            outcome = self._sandbox.run({"artifact_guid": document.guid}, directory)
        except ProcessFuncBroken as error:
            raise RequestError(500, str(error).splitlines()[0]) from None
        complaint = outcome.error or "; ".join(find_misdeeds(directory, before))
        if complaint:
            raise RequestError(422, f"process_func does not take this document: {complaint}")

    def _receive(self, deadline: float) -> tuple[str, Any]:
        assert self._connection is not None
        try:
            if self._replies.poll(max(0.0, deadline - time.monotonic()) * 1000):
                found: tuple[str, Any] = self._connection.recv()
                return found
        except (EOFError, OSError):
            code = self._end()
            return UNREADABLE, f"encode_data ended its process (exit code {code}) at this document"
        was_ready = self._ready
        self._end()
        self.start()
        if not was_ready:
            raise RequestError(503, "the encoder is still starting; try again later")
        return UNREADABLE, f"encode_data has not returned within {self._seconds:g} s for this document"

    def _end(self) -> Any:
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return None
        if process.is_alive():
            process.join(0.2)
        if process.is_alive():
            process.kill()
        process.join()
        if self._connection is not None:
            self._connection.close()
        return process.exitcode

    def close(self) -> None:
        self._end()
        if self._sandbox is not None:
            self._sandbox.close()


# --- what runs in the encoding process


def _serve_encodings(connection: Connection, deployment: DeploymentFolder) -> None:
    """Encode documents one by one until the server closes the connection or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the server decides, and finishes what is in flight
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    try:
        encode = DocumentEncoder(deployment)
    except BaseException as error:
        connection.send((BROKEN, str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"))
        return
    connection.send((READY, encode.features.to_dict()))
    with Path(os.devnull).open("w") as nowhere:  # what encode_data prints of a document is nothing for the server's log
        sys.stdout.flush()
        sys.stderr.flush()
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())
    gc.collect()
    gc.freeze()
    while True:
        try:
            guid, directory = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(encode(guid, Path(directory)))


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@dataclass
class DocumentEncoder:
    """encode_data of a deployment folder, over folders of files."""

    deployment: DeploymentFolder

    def __post_init__(self) -> None:
        from docml_trainer.functions import UserFunctions
        from docml_trainer.preparation.encoder import Encoder

        functions = UserFunctions.load(self.deployment.functions)
        self._task = self.deployment.encoding_task(1)
        self._encoder = Encoder(functions, (self.deployment.encoding_context,), False, lambda first, count: None)
        self.features = self._encoder.features

    def __call__(self, guid: str, directory: Path) -> tuple[str, Any]:
        """(ROW, the row), or (why there is none, a sentence)."""
        import pyarrow as pa

        from docml_trainer.data.datasets import document_values
        from docml_trainer.data.shapes import ARTIFACT_GUID, shape_of
        from docml_trainer.preparation.documents import Tally, read_batch

        names = [path.name for path in directory.iterdir()]
        paths = [
            matching(names, entry) if is_pattern(entry) else [entry] if entry in names else []
            for entry in self._task.model_input_files
        ]
        unknown = [[None] * len(own) for own in paths]  # what was sent has no recorded hash
        batch: dict[str, list[Any]] = {
            **{"position": [0], "artifact_guid": [guid], "label": [""]},
            **{"paths": [paths], "digests": [unknown]},
        }
        self._encoder.tally = Tally()
        try:
            table = self._encoder(read_batch(batch, self._task, directory, ""))
        except UserCodeError as error:
            return BROKEN, str(error)
        except SystemExit:
            return UNREADABLE, f"{self._encoder.function_name} called sys.exit for this document"
        if self._encoder.tally.failures:
            failure = self._encoder.tally.failures[0]
            return (
                UNREADABLE,
                f"{self._encoder.function_name} does not take this document: {failure.file}: {failure.error}",
            )
        if not table.num_rows:
            return LEFT_OUT, f"{self._encoder.function_name} returned None: the model leaves such documents out"
        row: Row = {
            name: document_values(pa.chunked_array([table[name].combine_chunks()]), shape_of(name, feature))[0]
            for name, feature in self.features.items()
        }
        return ROW, {**row, ARTIFACT_GUID: guid}
