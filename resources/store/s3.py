"""The store on S3, over obstore (Rust): server-side copies, conditional puts, listing as Arrow."""

import asyncio
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from resources.errors import MissingKey, StoreError
from resources.store.objects import (
    OUTAGE_SECONDS,
    PARALLEL_FILES,
    Gone,
    MissingSource,
    Names,
    StoredObject,
    copy_in_threads,
    missing_key,
)
from resources.store.s3_client import BucketClients, Outage
from resources.store.s3_listing import Listing

# Puts that met a conflict or whose answer was lost are settled by looking, this many times.
SETTLING_ATTEMPTS = 8
PART_BYTES = 16 << 20
# CopyObject refuses more than 5 GiB: larger objects go through here, in parts.
TOO_LARGE_TO_COPY = "larger than the maximum allowable size"


class S3Backend:
    """Objects below s3://bucket/prefix. patience: seconds that a service which does not answer is waited for."""

    def __init__(self, url: str, environment: Mapping[str, str], patience: float = OUTAGE_SECONDS) -> None:
        self.url = url
        self.bucket, _, self.prefix = url.removeprefix("s3://").partition("/")
        self.clients = BucketClients(self.bucket, environment, patience)

    # -- one object

    def get(self, key: str) -> bytes:
        """The object's bytes. MissingKey."""
        return self.clients.ask(self.uri(key), lambda: bytes(obstore.get(self.clients.client, self.full(key)).bytes()))

    def head(self, key: str) -> StoredObject | None:
        """The object; None if there is none."""
        try:
            meta = self.clients.ask(self.uri(key), lambda: obstore.head(self.clients.client, self.full(key)))
        except MissingKey:
            return None
        return StoredObject(key, meta["size"], _plain_etag(meta["e_tag"]))

    def put(self, key: str, data: bytes) -> StoredObject:
        """One request, or a multipart upload."""
        return self._put(key, data, len(data))

    def put_file(self, key: str, file: Path | BinaryIO) -> StoredObject:
        """The same, read from the file part by part."""
        size = file.stat().st_size if isinstance(file, Path) else os.fstat(file.fileno()).st_size
        return self._put(key, file, size)

    def _put(self, key: str, content: bytes | Path | BinaryIO, size: int) -> StoredObject:
        client = self.clients.transfers if size > PART_BYTES else self.clients.client

        def transfer() -> Any:
            if not isinstance(content, bytes | Path):
                content.seek(0)  # an earlier attempt has read it
            return obstore.put(client, self.full(key), content, chunk_size=PART_BYTES, max_concurrency=4)

        result = self.clients.ask(self.uri(key), transfer)
        return StoredObject(key, size, _plain_etag(result["e_tag"]))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """If-None-Match; after a lost answer, what is found is compared with what was put."""
        lost = False  # whether an answer was lost, so that what is found may be ours
        outage = Outage(self.uri(key), self.clients)
        for attempt in itertools.count():
            try:
                obstore.put(self.clients.client, self.full(key), data, mode="create", use_multipart=False)
                outage.over()
                return True
            except (AlreadyExistsError, PreconditionError) as error:
                # 412, or 409 while another put is under way: only what is there then tells which.
                if (found := self._get_or_none(key)) is not None:
                    return lost and found == data
                if attempt >= SETTLING_ATTEMPTS:
                    raise StoreError(
                        f"{self.uri(key)}: conditional puts keep conflicting; is another process writing it in a loop?"
                    ) from error
                time.sleep(random.uniform(0, min(5.0, 0.1 * 2**attempt)))
            except BaseError as error:
                time.sleep(outage.pause(error))
                lost = True
        raise AssertionError("unreachable")

    def get_file(self, key: str, path: Path) -> None:
        """Stream beside `path`, and move into place. MissingKey."""
        draft = path.with_name(f".{path.name[:200]}.{threading.get_ident()}.part")

        def transfer() -> None:
            with draft.open("wb") as stream:
                for block in obstore.get(self.clients.transfers, self.full(key)).stream(PART_BYTES):
                    stream.write(block)

        try:
            self.clients.ask(self.uri(key), transfer)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def delete(self, keys: Sequence[str]) -> None:
        """Bulk deletes."""
        if keys:
            paths = [self.full(key) for key in keys]
            self.clients.ask(self.uri(keys[0]), lambda: obstore.delete(self.clients.client, paths))

    # -- copies

    def copies_within(self, other: Any) -> bool:
        """Whether the service can copy from `other` by itself."""
        return isinstance(other, S3Backend) and other.clients.service == self.clients.service

    def copy_from(self, other: Any, source: str, target: str) -> StoredObject:
        """Copy within S3, in parts if it is large; from elsewhere, stream."""
        if not self.copies_within(other):
            return self._stream(other, source, target)
        try:
            copier = self.clients.copier(other.bucket)
            self.clients.ask(other.uri(source), lambda: obstore.copy(copier, other.full(source), self.full(target)))
            too_large = False
        except StoreError as error:
            too_large = TOO_LARGE_TO_COPY in str(error)
            if not too_large:
                raise
        if too_large:
            return self._stream(other, source, target)
        if (copy := self.head(target)) is None:
            raise StoreError(f"{self.uri(target)}: was copied from {other.uri(source)}, but is not there")
        return copy

    def copy_many(
        self, other: Any, pairs: Iterator[tuple[str, str]], parallel: int, copied: Callable[[], None]
    ) -> Gone:
        """Many copies in flight within S3; in threads from elsewhere."""
        if not self.copies_within(other):
            return copy_in_threads(self, other, pairs, min(parallel, PARALLEL_FILES), copied)
        return _BulkCopy(self, other, pairs, copied).run(parallel)

    def _stream(self, other: Any, source: str, target: str) -> StoredObject:
        """Through this process, in parts: from another kind of store or service, or larger than CopyObject takes."""
        if not isinstance(other, S3Backend):
            path = other.path_of(source)
            if not path.is_file():
                raise missing_key(str(path))
            return self.put_file(target, path)

        async def through() -> tuple[int, Any]:
            found = await obstore.get_async(other.clients.transfers, other.full(source))
            put = obstore.put_async(
                self.clients.client,
                self.full(target),
                found.stream(PART_BYTES),
                chunk_size=PART_BYTES,
                max_concurrency=4,
            )
            return found.meta["size"], await put

        with ThreadPoolExecutor(1) as thread:
            size, result = self.clients.ask(
                other.uri(source), lambda: thread.submit(lambda: asyncio.run(through())).result()
            )
        return StoredObject(target, size, _plain_etag(result["e_tag"]))

    # -- listing

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All objects below, by key."""
        for batch in self.list_table(prefix, 1, True).to_batches():
            for key, size, etag in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield StoredObject(key, size, etag)

    def list_folders(self, prefix: str) -> Names:
        """Names of the folders directly below."""
        found = self.clients.ask(
            self.uri(prefix), lambda: obstore.list_with_delimiter(self.clients.client, self.full(prefix) or None)
        )["common_prefixes"]
        return sorted(folder.rstrip("/").rsplit("/", 1)[-1] for folder in found)

    def list_table(self, prefix: str, shards: int, etags: bool) -> pa.Table:
        """TABLE_SCHEMA, sorted by key."""
        base = f"{self.full(prefix)}/" if self.full(prefix) else ""
        start = len(self.prefix) + 1 if self.prefix else 0
        return Listing(self.clients, base, start, self.uri(prefix)).table(shards)

    # -- addresses

    def full(self, key: str) -> str:
        """The key within the bucket."""
        return f"{self.prefix}/{key}".strip("/") if self.prefix else key

    def uri(self, key: str) -> str:
        """The object's s3:// address, for messages."""
        return f"{self.url}/{key}"

    def _get_or_none(self, key: str) -> bytes | None:
        try:
            return self.get(key)
        except MissingKey:
            return None


class _BulkCopy:
    """Server-side copies, many in flight, on an event loop in a thread of its own, so that an interrupt of the caller gets through."""

    def __init__(
        self, target: S3Backend, source: S3Backend, pairs: Iterator[tuple[str, str]], copied: Callable[[], None]
    ) -> None:
        self.target, self.source, self.pairs, self.copied = target, source, pairs, copied
        self.client = target.clients.copier(source.bucket)
        self.gone: Gone = []
        self.stop = False

    def run(self, parallel: int) -> Gone:
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(lambda: asyncio.run(self._all(parallel)))
            try:
                running.result()
            except BaseException:
                self.stop = True
                raise
        return self.gone

    async def _all(self, parallel: int) -> None:
        workers = [asyncio.create_task(self._work()) for _ in range(parallel)]
        try:
            await asyncio.gather(*workers)
        finally:
            self.stop = True
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self) -> None:
        for source, target in self.pairs:
            if self.stop:
                return
            if await self._copied(source, target):
                self.copied()

    async def _copied(self, source: str, target: str) -> bool:
        """Whether the object was copied; False where its source is gone or the whole copy is being stopped."""
        outage = Outage(self.source.uri(source), self.target.clients)
        while not self.stop:
            try:
                await obstore.copy_async(self.client, self.source.full(source), self.target.full(target))
            except FileNotFoundError:
                self.gone.append(MissingSource(source, target))
                return False
            except BaseError as error:
                if TOO_LARGE_TO_COPY in str(error):
                    await asyncio.to_thread(self.target._stream, self.source, source, target)
                    return True
                await asyncio.sleep(outage.pause(error))
            else:
                outage.over()
                return True
        return False


def _plain_etag(etag: str | None) -> str:
    return (etag or "").strip('"')
