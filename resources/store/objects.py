"""What stores take and give: safe keys, descriptions of objects, tables of them, and the interface of a store's backend.

GUIDs and file names come from databases and buckets that others fill: they are untrusted. `refusal` alone decides which are safe;
everything else asks it.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from docml_contract.file_names import refusal
from resources.errors import MissingKey, UnsafeKey

TABLE_SCHEMA = pa.schema([("key", pa.string()), ("size", pa.int64()), ("etag", pa.string())])
# How long a store that does not answer is waited for: as long as any other service.
OUTAGE_SECONDS = 15 * 60.0
# Files moved at once between a store and local folders: enough to hide latency, few enough for two cores.
PARALLEL_FILES = 32
# Requests in flight of a bulk copy; more gains nothing at 30 ms a request (bench/copies.py).
PARALLEL_COPIES = 256
# The size of symbolic links in the table of a folder's objects: nothing reads them, and they can be counted.
LINK_SIZE = -1


class StoredObject:
    """An object as a store describes it: key, size in bytes, etag.

    An etag tells change within one store only. A folder's is the content's sha256, read when it is asked for: listing a big folder
    reads no file.
    """

    __slots__ = ("_etag", "key", "size")

    def __init__(self, key: str, size: int, etag: str | Callable[[], str]) -> None:
        self.key = key
        self.size = size
        self._etag = etag

    @property
    def etag(self) -> str:
        """Changes whenever the content does."""
        if not isinstance(self._etag, str):
            self._etag = self._etag()
        return self._etag

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StoredObject):
            return NotImplemented
        return (self.key, self.size) == (other.key, other.size) and self.etag == other.etag

    def __hash__(self) -> int:
        return hash((self.key, self.size))

    def __repr__(self) -> str:
        return f"StoredObject({self.key!r}, {self.size} bytes)"


@dataclass(frozen=True)
class MissingSource:
    """A copy whose source had gone."""

    source: str
    target: str


# Classes with a method called `list` cannot say list[…] in their signatures.
Names = list[str]
Objects = list[StoredObject]
Gone = list[MissingSource]


class StoreBackend(Protocol):
    """What a folder and S3 each do in their own way. Keys are checked, prefixes stripped of outer slashes."""

    def get(self, key: str) -> bytes:
        """The object's bytes. MissingKey."""

    def head(self, key: str) -> StoredObject | None:
        """The object; None if there is none."""

    def list_folders(self, prefix: str) -> Names:
        """Names of the folders directly below."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All objects below, by key."""

    def list_table(self, prefix: str, shards: int, etags: bool) -> pa.Table:
        """The same as TABLE_SCHEMA, listed in up to so many key ranges at once.

        Without `etags` their column is null where they cost a read.
        """

    def put(self, key: str, data: bytes) -> StoredObject:
        """Put or replace; whoever reads sees all of it or nothing."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Whether this call made the object: of several at once exactly one does."""

    def put_file(self, key: str, file: Path | BinaryIO) -> StoredObject:
        """Put a local file's content."""

    def get_file(self, key: str, path: Path) -> None:
        """Write the content to `path`, whole or not at all. MissingKey."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete; absent keys are no error."""

    def copies_within(self, other: Any) -> bool:
        """Whether the other's objects can be copied without passing through this process."""

    def copy_from(self, other: Any, source: str, target: str) -> StoredObject:
        """Copy one object of another backend. MissingKey."""

    def copy_many(
        self, other: Any, pairs: Iterator[tuple[str, str]], parallel: int, copied: Callable[[], None]
    ) -> Gone:
        """Copy (source, target) pairs; `copied` is called after each. Returns the pairs whose source had gone."""


def missing_key(uri: str) -> MissingKey:
    """The error for an object that is not there."""
    return MissingKey(f"{uri} does not exist")


def copy_in_threads(
    target: Any, source: Any, pairs: Iterator[tuple[str, str]], parallel: int, copied: Callable[[], None]
) -> Gone:
    """`target.copy_from(source, …)` for every pair. The first error other than MissingKey, or an interrupt, stops the rest."""
    lock = threading.Lock()
    stop = threading.Event()
    gone: Gone = []

    def work() -> None:
        while not stop.is_set():
            with lock:
                pair = next(pairs, None)
            if pair is None:
                return
            try:
                target.copy_from(source, *pair)
            except MissingKey:
                with lock:
                    gone.append(MissingSource(*pair))
                continue
            with lock:
                copied()

    with ThreadPoolExecutor(parallel) as pool:
        try:
            workers = [pool.submit(work) for _ in range(parallel)]
            wait(workers, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for worker in workers:
        worker.result()
    return gone


# S3 takes keys of 1,024 bytes.
MAX_KEY_BYTES = 1024
# Plain names, nearly all of them: safe by construction, so that a million are checked without a Python call for each.
_PLAIN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$"
_UNSAFE_SEGMENT = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")
_UNSAFE_CHARACTER = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udfff]")


def refusals(names: Any) -> dict[str | None, str]:
    """The refused ones among many names (an Arrow column of text): name -> reason."""
    plain = pc.fill_null(pc.match_substring_regex(names, _PLAIN), False)
    suspects = pc.unique(pc.filter(names, pc.invert(plain)))
    reasons = ((name, refusal(name)) for name in suspects.to_pylist())
    return {name: reason for name, reason in reasons if reason is not None}


def check_key(key: str) -> str:
    """`key`, or UnsafeKey: relative, '/' between non-empty segments, no '.' or '..', no control characters."""
    if not key or len(key.encode(errors="surrogatepass")) > MAX_KEY_BYTES:
        raise UnsafeKey(f"key {key[:80]!r}…: expected 1 to {MAX_KEY_BYTES} bytes")
    if _UNSAFE_SEGMENT.search(key):
        raise UnsafeKey(
            f"key {key!r}: empty, '.' and '..' segments are refused (keys are relative to the store's root)"
        )
    if _UNSAFE_CHARACTER.search(key):
        raise UnsafeKey(f"key {key!r}: control characters and invalid UTF-8 are refused")
    return key
