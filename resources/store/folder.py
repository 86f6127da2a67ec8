"""The store on a folder: every write is a rename, every copy a reflink or a copy."""

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from io import BufferedReader
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from resources.errors import StoreError, UnreadableFile
from resources.processes import place_here, start_of
from resources.store.objects import (
    LINK_SIZE,
    PARALLEL_FILES,
    TABLE_SCHEMA,
    Gone,
    Names,
    StoredObject,
    copy_in_threads,
    missing_key,
)

# Drafts wait here, on the store's own file system, until they are renamed into place; never listed.
DRAFTS = ".docml-drafts"
# A draft older than this was left by a killed process of which nothing can be told from here.
STALE_SECONDS = 24 * 3600
# Linux's ioctl for sharing a file's blocks (btrfs, XFS, bcachefs); macOS has clonefile(2).
_FICLONE = 0x40049409
# A file that changed this recently may change again without its time stamp moving: its hash is not remembered.
_SETTLED_NS = 2_000_000_000


# The folder as a whole cannot be used.
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
_USABLE = (
    "expected a folder that this user can read and write, with space left: fix its permissions, free space, or let DOCML_STORE "
    "(DOCML_PRODUCTION_FILES) name another folder"
)


class FolderBackend:
    """Files below `root`; keys are their relative paths."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._hashes: dict[tuple[int, int, int, int, int], str] = {}
        self._drafts_ready = False
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes:
        """The file's bytes."""
        path = self.path_of(key)
        with self.reading(key), _open(path) as stream:
            return stream.read()

    def head(self, key: str) -> StoredObject | None:
        """The file; None if there is none."""
        path = self.path_of(key)
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._error(key, error) from error
        if not stat.S_ISREG(status.st_mode):
            return None
        return StoredObject(key, status.st_size, lambda: self._sha256(path))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All files below, by key in byte order."""
        for key, path, size in sorted(self._walk(prefix), key=lambda found: os.fsencode(found[0])):
            if size == LINK_SIZE:
                continue
            yield StoredObject(key, size, lambda path=path: self._sha256(path))  # type: ignore[misc]

    def list_folders(self, prefix: str) -> Names:
        """Names of the folders directly below."""
        try:
            with os.scandir(self.root / prefix) as entries:
                names = [
                    entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name != DRAFTS
                ]
        except FileNotFoundError:
            return []
        except OSError as error:
            if isinstance(error, NotADirectoryError) and prefix:
                return []
            raise self._error(prefix, error) from error
        # A folder without a file does not exist on S3 either.
        return sorted(name for name in names if next(self._walk(f"{prefix}/{name}" if prefix else name), None))

    def list_table(self, prefix: str, shards: int, etags: bool) -> pa.Table:
        """TABLE_SCHEMA, sorted by key; `etags` reads every file that changed since it was last read."""
        found = sorted(self._walk(prefix), key=lambda file: os.fsencode(file[0]))
        hashes: list[str | None] = [None] * len(found)
        if etags:
            with ThreadPoolExecutor(PARALLEL_FILES) as pool:
                hashes = list(pool.map(lambda file: None if file[2] == LINK_SIZE else self._sha256(file[1]), found))
        # A name that is not UTF-8 has no key; it is shown with replacement characters, which refusal() then refuses.
        keys = [os.fsencode(key).decode(errors="replace") for key, _, _ in found]
        return pa.table([keys, [size for _, _, size in found], hashes], schema=TABLE_SCHEMA)

    def put(self, key: str, data: bytes) -> StoredObject:
        """Write beside, sync, and move into place."""
        with self._draft(key) as draft:
            _write_durably(draft, data)
            self._place(draft, key, os.replace)
        return StoredObject(key, len(data), hashlib.sha256(data).hexdigest())

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """A link to a complete file: atomic among processes, and nobody sees half an object. The draft is unlinked afterwards."""
        with self._draft(key) as draft:
            _write_durably(draft, data)
            try:
                self._place(draft, key, os.link)
            except FileExistsError:
                if self.path_of(key).is_file():
                    return False
                raise
            return True

    def put_file(self, key: str, file: Path | BinaryIO) -> StoredObject:
        """A reflink where the file system can, else a copy."""
        with self._draft(key) as draft:
            _reflink_or_copy(file, draft)
            return self._placed(draft, key)

    def get_file(self, key: str, path: Path) -> None:
        """Copy beside `path`, and move into place."""
        source = self.path_of(key)
        draft = path.with_name(f".{path.name[:200]}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            with self.reading(key):
                _reflink_or_copy(source, draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def delete(self, keys: Sequence[str]) -> None:
        """Unlink; folders vanish with their last object, as on S3."""
        for key in keys:
            path = self.path_of(key)
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
            with suppress(OSError):  # at the first folder that is not empty
                for folder in takewhile(lambda folder: folder != self.root, path.parents):
                    folder.rmdir()

    def copies_within(self, other: Any) -> bool:
        """Whether the other is a folder as well."""
        return isinstance(other, FolderBackend)

    def copy_from(self, other: Any, source: str, target: str) -> StoredObject:
        """Copy one object, from a folder or from S3."""
        with self._draft(target) as draft:
            if isinstance(other, FolderBackend):
                with other.reading(source):
                    _reflink_or_copy(other.path_of(source), draft)
            else:
                other.get_file(source, draft)
            return self._placed(draft, target)

    def copy_many(
        self, other: Any, pairs: Iterator[tuple[str, str]], parallel: int, copied: Callable[[], None]
    ) -> Gone:
        """Copy in threads."""
        return copy_in_threads(self, other, pairs, min(parallel, PARALLEL_FILES), copied)

    def path_of(self, key: str) -> Path:
        """The key's file. StoreError for a key among the drafts."""
        if key.split("/", 1)[0] == DRAFTS:
            raise StoreError(f"key {key!r}: {DRAFTS} is where unfinished writes lie; choose another name")
        return self.root / key

    def _walk(self, prefix: str) -> Iterator[tuple[str, Path, int]]:
        """(key, path, size) of every file below a folder. Symbolic links have LINK_SIZE and are not followed: they lead out of the
        folder, or in circles."""
        pending = [(os.fspath(self.root / prefix), f"{prefix}/" if prefix else "")]
        while pending:
            folder, base = pending.pop()
            try:
                entries = list(os.scandir(folder))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise self._error(base, error) from error
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if base or entry.name != DRAFTS:
                        pending.append((entry.path, f"{base}{entry.name}/"))
                elif entry.is_symlink():
                    yield f"{base}{entry.name}", Path(entry.path), LINK_SIZE
                elif entry.is_file():
                    with suppress(FileNotFoundError):  # deleted since
                        yield f"{base}{entry.name}", Path(entry.path), entry.stat().st_size

    def _sha256(self, path: Path) -> str:
        """The content's hash, remembered as long as the file's identity, times and size stay the same."""
        try:
            with _open(path) as stream:
                status = os.fstat(stream.fileno())
                identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
                if identity not in self._hashes:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _SETTLED_NS:
                        return digest
                    self._hashes[identity] = digest
                return self._hashes[identity]
        except FileNotFoundError:
            raise missing_key(str(path)) from None

    @contextmanager
    def _draft(self, key: str) -> Iterator[Path]:
        """A path to write to before `_into_place`; removed in the end, whatever happens."""
        folder = self.root / DRAFTS
        with self._lock:
            if not self._drafts_ready:
                try:
                    for each in reversed([self.root, *self.root.parents]):
                        if not each.is_dir():
                            each.mkdir(mode=0o700, exist_ok=True)  # for this user alone; others keep their mode
                    folder.mkdir(exist_ok=True)  # like all others in it: a root that a team shares is theirs
                    _remove_stale(folder)
                except OSError as error:
                    raise self._error("", error) from error
                self._drafts_ready = True
        path = folder / f"{_writer(os.getpid())}-{threading.get_ident()}-{time.monotonic_ns()}"
        try:
            yield path
        except OSError as error:
            raise self._error(key, error) from error
        finally:
            with suppress(
                OSError
            ):  # a file system that was made read-only meanwhile: the error that matters is on its way
                path.unlink(missing_ok=True)

    def _place(self, draft: Path, key: str, move: Callable[[Path, Path], None]) -> None:
        target = self.path_of(key)
        for _ in range(100):
            try:
                return move(draft, target)
            except FileNotFoundError:
                # The folder is not there yet, or another process has just removed it empty.
                target.parent.mkdir(parents=True, exist_ok=True)
        raise StoreError(f"{target}: its folder or the draft keeps vanishing; does something clean up {self.root}?")

    def _placed(self, draft: Path, key: str) -> StoredObject:
        size = draft.stat().st_size
        self._place(draft, key, os.replace)
        path = self.path_of(key)
        return StoredObject(key, size, lambda: self._sha256(path))

    @contextmanager
    def reading(self, key: str) -> Iterator[None]:
        """Errors of reading an object as the store's."""
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise missing_key(str(self.root / key)) from None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EIO) and os.path.lexists(self.root / key):
                text = "expected a file that this user can read: fix its permissions, or restore it"
                raise UnreadableFile(f"{self.root / key} cannot be read ({error.strerror}); {text}") from error
            raise self._error(key, error) from error

    def _error(self, key: str, error: OSError) -> StoreError:
        path = self.root / key if key else Path(error.filename or self.root)
        kind, text = StoreError, error.strerror or str(error)
        if error.errno in _UNUSABLE or not key:
            text += f"; {_USABLE}"
        elif isinstance(error, NotADirectoryError | IsADirectoryError | FileExistsError):
            text = (
                "this key, or a parent of it, is both an object and a folder; remove the one that docml has not written"
            )
        elif isinstance(error, FileNotFoundError) and not self.root.is_dir():
            text = f"{self.root} has gone: is it mounted still? The same command goes on once it is there again"
        elif error.errno == errno.ELOOP:
            kind, text = (
                UnreadableFile,
                "a symbolic link; expected a file: put a copy of what it leads to there instead",
            )
        elif error.errno == errno.ENAMETOOLONG:
            text = "a segment of the key is longer than 255 bytes"
        return kind(f"{path}: {text}")


def _open(path: Path) -> BufferedReader:
    """A file to read; OSError (ELOOP) if it is a symbolic link, whatever it was when it was listed. Nobody waits for who writes to a pipe."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _remove_stale(folder: Path) -> None:
    """Drafts of processes that were killed. Of one on another machine, or in another container, only its age tells."""
    here = place_here()
    for path in folder.iterdir():
        place, _, process = path.name.split("-")[0].partition(".")
        number, _, start = process.partition(".")
        with suppress(FileNotFoundError):
            killed = place == here and number.isdecimal() and _start(int(number)) != start
            if killed or time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


@cache
def _writer(pid: int) -> str:
    """This process, in the names of its drafts."""
    return f"{place_here()}.{pid}.{_start(pid)}"


def _start(pid: int) -> str:
    """When a process started, without what separates the parts of a draft's name."""
    return (start_of(pid) or "").replace("-", "_").replace(".", "_")


def _reflink_or_copy(source: Path | BinaryIO, target: Path) -> None:
    """Share the source's blocks where the file system can, else copy. Never a hard link: that would be one file under two
    names, and a write to one would change both."""
    if isinstance(source, Path) and os.uname().sysname == "Darwin":
        with suppress(OSError, AttributeError):
            if ctypes.CDLL(None).clonefile(os.fsencode(source), os.fsencode(target), 0) == 0:
                return
    opened = _open(source) if isinstance(source, Path) else nullcontext(source)
    with opened as reader, target.open("wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            reader.seek(0)
            shutil.copyfileobj(reader, writer, 1 << 20)
