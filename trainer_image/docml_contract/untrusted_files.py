"""Files where user code can write, looked at and read without following what it may put in their place, at whatever moment.

A name says nothing: between a look and the next one it may lead to what that code may not read itself. So a folder is held open, every
step below it refuses links, and what is checked is the opened file, which is then read.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from docml_contract.file_names import refusal

# Written by the platform after process_func's files, with their number in the name: `.processed-3`.
MARKER = ".processed-"
# A file may be longer than what it holds on disk by so much: it is copied to its full length.
HOLLOW_BYTES = 1 << 30
# What S3 copies as one object.
FILE_BYTES = 5 << 30
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe keeps nobody waiting


class Misdeed(Exception):
    """What process_func must not have done to its folder, in one sentence."""


class UntrustedFolder:
    """A folder where user code can write, held open: another one in its place is not seen."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, _FOLDER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._descriptor)

    def names(self) -> list[str]:
        """What lies in it, sorted."""
        with os.scandir(self._descriptor) as entries:
            return sorted(entry.name for entry in entries)

    def plain_files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Path and status of the plain files in it and below it, but for hidden ones and those in hidden folders."""
        for folder, folders, names, descriptor in os.fwalk(".", dir_fd=self._descriptor):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                with suppress(FileNotFoundError):  # gone meanwhile
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and not name.startswith("."):
                        yield os.path.normpath(f"{folder}/{name}"), status

    def open(self, path: str) -> BufferedReader:
        """A plain file in it or below it, to read. OSError for anything else, and for what lies behind a link."""
        *folders, name = path.split("/")
        with ExitStack() as opened:
            at = self._descriptor
            for folder in folders:
                at = os.open(folder, _FOLDER, dir_fd=at)
                opened.callback(os.close, at)
            file = os.open(name, _FILE, dir_fd=at)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(errno.EINVAL, "not a plain file", path)
        return os.fdopen(file, "rb")


def open_made(folder: UntrustedFolder, name: str) -> BinaryIO:
    """A file that process_func made, to read. Raises Misdeed for one that it must not have made."""
    if (reason := refusal(name)) is not None:
        raise Misdeed(f"process_func left a file with the name {name!r}: {reason}")
    if name.startswith(MARKER):
        raise Misdeed(f"process_func left {name!r}: names that start with {MARKER!r} are the platform's")
    try:
        stream = folder.open(name)
    except OSError as error:
        raise Misdeed(
            f"process_func left {name!r}, which is not a plain file; an artifact is a flat folder of files"
        ) from error
    status = os.fstat(stream.fileno())
    if (complaint := _complaint(name, status)) is not None:
        stream.close()
        raise Misdeed(complaint)
    return stream


def _complaint(name: str, status: os.stat_result) -> str | None:
    if is_hollow(status):
        return (
            f"process_func left {name!r}, which is {status.st_size} bytes long and holds next to nothing: a sparse "
            "file would be copied to its full length; write only what is needed"
        )
    if status.st_size > FILE_BYTES:
        return f"process_func left {name!r} of {status.st_size} bytes; a file may have {FILE_BYTES} at most"
    return None


def find_misdeeds(folder: UntrustedFolder, before: Mapping[str, str]) -> Iterator[str]:
    """What process_func must not have done to its folder, in which `before` lay: file -> sha256."""
    for name, digest in before.items():
        if _sha256(folder, name) != digest:
            yield f"process_func changed or removed {name!r}, which comes from production; write to a file of another name"
    for name in folder.names():
        if name not in before:
            try:
                open_made(folder, name).close()
            except Misdeed as misdeed:
                yield str(misdeed)


def _sha256(folder: UntrustedFolder, name: str) -> str | None:
    try:
        with folder.open(name) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def open_left(path: Path) -> BinaryIO:
    """A file where user code can write, to read; OSError for a link, which may lead to what that code may not read itself."""
    with UntrustedFolder(path.parent) as folder:
        return folder.open(path.name)


def is_hollow(status: os.stat_result) -> bool:
    """Whether a file is far longer than what it holds on disk."""
    return stat.S_ISREG(status.st_mode) and status.st_size - 512 * status.st_blocks > HOLLOW_BYTES
