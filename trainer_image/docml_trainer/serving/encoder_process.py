"""What runs in the server's encoding processes: encode_data, for one document after the other.

Nothing here imports torch: a process that is started again, since a document ended it, answers a second later and not five.
"""

import gc
import os
import pickle
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from docml_contract.file_names import is_pattern, matching
from docml_contract.jobs import PrepareTask
from docml_contract.units import document_guid, files_of_unit, units_in
from docml_trainer.data.shapes import ARTIFACT_GUID
from docml_trainer.errors import TrainerError, UserCodeError
from docml_trainer.functions import Context, UserFunctions
from docml_trainer.preparation.documents import Tally, read_batch
from docml_trainer.preparation.encoder import Encoder

ROW, UNREADABLE, LEFT_OUT, BROKEN, READY, UNITS = "row", "unreadable", "left out", "broken", "ready", "units"
SIZE_BYTES = 4  # of the length that stands before a reply


@dataclass(frozen=True)
class EncoderSettings:
    """What encode_data is, and what it is told."""

    functions: Path
    context: Context
    task: PrepareTask
    units: bool = False  # whether the units of a document are encoded, each by itself


def write_files(files: Mapping[str, bytes], directory: Path) -> None:
    """A folder with these files."""
    directory.mkdir(mode=0o700, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)


def serve_encodings(server: socket.socket, settings: EncoderSettings, folder: Path) -> None:
    """Encode documents one by one until the server ends this process, or is gone: then nothing is left in `folder`, where documents lie."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the server decides, and finishes what is in flight
    parent = os.getppid()
    threading.Thread(target=_exit_with_parent, args=(parent, folder), daemon=True).start()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    tasks = server.makefile("rb")

    def reply(kind: str, content: Any) -> None:
        data = pickle.dumps((kind, content), pickle.HIGHEST_PROTOCOL)
        server.sendall(len(data).to_bytes(SIZE_BYTES) + data)

    try:
        encode = DocumentEncoder(settings)
    except BaseException as error:
        reply(BROKEN, str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}")
        return
    reply(READY, encode.features.to_dict())
    with Path(os.devnull).open("w") as nowhere:  # what encode_data prints of a document is nothing for the server's log
        sys.stdout.flush()
        sys.stderr.flush()
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())
    gc.collect()
    gc.freeze()
    with suppress(EOFError, ConnectionError):
        while True:
            guid, directory, files = pickle.load(tasks)
            try:
                write_files(files, Path(directory))
                answer = encode(guid, Path(directory))
            except OSError as error:
                answer = BROKEN, f"the document cannot be kept while it is encoded: {error.strerror}"
            reply(*answer)
            shutil.rmtree(directory, ignore_errors=True)
    _exit_with_parent(parent, folder)


def _exit_with_parent(parent: int, folder: Path) -> NoReturn:
    while os.getppid() == parent:
        time.sleep(1)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # where other processes of the server have theirs
        folder.parent.rmdir()
    os._exit(1)


class DocumentEncoder:
    """encode_data, over folders of files."""

    def __init__(self, settings: EncoderSettings) -> None:
        self._task, self._units = settings.task, settings.units
        self._encoder = Encoder(
            UserFunctions.load(settings.functions), (settings.context,), False, lambda first, count: None
        )
        self.features = self._encoder.features

    def __call__(self, guid: str, directory: Path) -> tuple[str, Any]:
        """(ROW, the row), or (why there is none, a sentence); where units are encoded (UNITS, the same of each: name, kind, content)."""
        names, entries = [path.name for path in directory.iterdir()], self._task.model_input_files
        if not self._units:
            return self._encode(guid, directory, names)
        units = units_in(names, entries)
        if not units:
            return LEFT_OUT, f"the document has no unit: none of its files fits a pattern of {', '.join(entries)}"
        encoded = (
            (unit, self._encode(document_guid(guid, unit), directory, files_of_unit(names, entries, unit)))
            for unit in units
        )
        return UNITS, [(unit, kind, content) for unit, (kind, content) in encoded]

    def _encode(self, guid: str, directory: Path, names: list[str]) -> tuple[str, Any]:
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
            rows = self._encoder.features_of(read_batch(batch, self._task, directory, ""))
        except UserCodeError as error:
            return BROKEN, str(error)
        if self._encoder.tally.failures:
            failure = self._encoder.tally.failures[0]
            return (
                UNREADABLE,
                f"{self._encoder.function_name} does not take this document: {failure.file}: {failure.error}",
            )
        if not rows:
            return LEFT_OUT, f"{self._encoder.function_name} returned None: the model leaves such documents out"
        return ROW, {**rows[0], ARTIFACT_GUID: guid}
