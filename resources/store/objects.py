"""What stores take and give: descriptions of objects, tables of them, and the interface of a store's backend."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from resources.errors import MissingKey

TABLE_SCHEMA = pa.schema([("key", pa.string()), ("size", pa.int64()), ("etag", pa.string())])
# How long a store that does not answer is waited for: as long as any other service.
OUTAGE_SECONDS = 15 * 60.0
# Files moved at once between a store and local folders: enough to hide latency, few enough for two cores.
PARALLEL_FILES = 32
# Requests in flight of a bulk copy; more gains nothing at 30 ms a request (bench/copies.py).
PARALLEL_COPIES = 256


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

    def get(self, key: str) -> bytes: ...
    def head(self, key: str) -> StoredObject | None: ...
    def list_folders(self, prefix: str) -> Names: ...
    def list(self, prefix: str) -> Iterator[StoredObject]: ...
    def list_table(self, prefix: str, shards: int, etags: bool) -> pa.Table: ...
    def put(self, key: str, data: bytes) -> StoredObject: ...
    def put_if_absent(self, key: str, data: bytes) -> bool: ...
    def put_file(self, key: str, path: Path) -> StoredObject: ...
    def get_file(self, key: str, path: Path) -> None: ...
    def delete(self, keys: Sequence[str]) -> None: ...
    def copies_within(self, other: Any) -> bool: ...
    def copy_from(self, other: Any, source: str, target: str) -> StoredObject: ...
    def copy_many(
        self, other: Any, pairs: Iterator[tuple[str, str]], parallel: int, copied: Callable[[], None]
    ) -> Gone: ...


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
