"""The store on S3, over obstore (Rust): server-side copies, conditional puts, listing as Arrow."""

import asyncio
import ipaddress
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from resources import aws
from resources.errors import MissingKey, SettingError, StoreError
from resources.store.s3_errors import REFUSALS, StoreErrors, store_error
from resources.store.s3_listing import Listing, Page
from resources.store.store import PARALLEL_FILES, Gone, Missing, Names, StoredObject, missing

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# Dropped connections, timeouts and 5xx (503 SlowDown among them) are tried again with exponential backoff and jitter.
RETRIES: "RetryConfig" = {
    "max_retries": 10,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2},
    "retry_timeout": timedelta(minutes=3),
}
TIMEOUTS: "ClientConfig" = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(minutes=10)}
# Puts that met a conflict or whose answer was lost are settled by looking, this many times.
SETTLING_ATTEMPTS = 8
PART_BYTES = 16 << 20
# CopyObject refuses more than 5 GiB: larger objects go through here, in parts.
TOO_LARGE_TO_COPY = "larger than the maximum allowable size"


class S3Backend:
    """Objects below s3://bucket/prefix."""

    def __init__(self, url: str, environment: Mapping[str, str]) -> None:
        self.url = url
        self.environment = dict(environment)
        self.bucket, _, self.prefix = url.removeprefix("s3://").partition("/")
        self.region = aws.region(environment) or "us-east-1"
        self.service = aws.endpoint("s3", environment)
        self._credentials = _credentials(environment)
        self._copiers: dict[str, S3Store] = {}

    @cached_property
    def client(self) -> S3Store:
        return self._open(self.bucket, RETRIES)

    @cached_property
    def _unretried(self) -> S3Store:
        """For conditional puts, retried by `put_if_absent`: after a retry out of sight, 412 may speak of our own object."""
        return self._open(self.bucket, {**RETRIES, "max_retries": 0})

    # -- one object

    def get(self, key: str) -> bytes:
        with StoreErrors(self.uri(key)):
            return bytes(obstore.get(self.client, self.full(key)).bytes())

    def head(self, key: str) -> StoredObject | None:
        try:
            with StoreErrors(self.uri(key)):
                meta = obstore.head(self.client, self.full(key))
        except MissingKey:
            return None
        return StoredObject(key, meta["size"], _plain_etag(meta["e_tag"]))

    def put(self, key: str, data: bytes) -> StoredObject:
        with StoreErrors(self.uri(key)):
            result = obstore.put(self.client, self.full(key), data, chunk_size=PART_BYTES)
        return StoredObject(key, len(data), _plain_etag(result["e_tag"]))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        lost = False  # whether an answer was lost, so that what is found may be ours
        for attempt in range(SETTLING_ATTEMPTS):
            try:
                obstore.put(self._unretried, self.full(key), data, mode="create", use_multipart=False)
                return True
            except (AlreadyExistsError, PreconditionError):
                # 412, or 409 while another put is under way: only what is there then tells which.
                if (found := self._get_or_none(key)) is not None:
                    return lost and found == data
            except BaseError as error:
                if type(error).__name__ in REFUSALS or attempt == SETTLING_ATTEMPTS - 1:
                    raise store_error(self.uri(key), error) from error
                lost = True
            time.sleep(random.uniform(0, min(5.0, 0.1 * 2**attempt)))
        raise StoreError(
            f"{self.uri(key)}: conditional puts keep conflicting; is another process writing it in a loop?"
        )

    def put_file(self, key: str, path: Path) -> StoredObject:
        with StoreErrors(self.uri(key)):
            result = obstore.put(self.client, self.full(key), path, chunk_size=PART_BYTES, max_concurrency=4)
        return StoredObject(key, path.stat().st_size, _plain_etag(result["e_tag"]))

    def get_file(self, key: str, path: Path) -> None:
        draft = path.with_name(f".{path.name[:200]}.{threading.get_ident()}.part")
        try:
            with StoreErrors(self.uri(key)), draft.open("wb") as stream:
                for block in obstore.get(self.client, self.full(key)).stream(PART_BYTES):
                    stream.write(block)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def delete(self, keys: Sequence[str]) -> None:
        if keys:
            with StoreErrors(self.uri(keys[0])):
                obstore.delete(self.client, [self.full(key) for key in keys])

    # -- copies

    def copies_within(self, other: Any) -> bool:
        """Whether the service can copy from `other` by itself."""
        return isinstance(other, S3Backend) and other.service == self.service

    def copy_from(self, other: Any, source: str, target: str) -> StoredObject:
        if not self.copies_within(other):
            return self._stream(other, source, target)
        try:
            with StoreErrors(other.uri(source)):
                obstore.copy(self._copier(other.bucket), other.full(source), self.full(target))
            too_large = False
        except StoreError as error:
            too_large = TOO_LARGE_TO_COPY in str(error)
            if not too_large:
                raise
        if too_large:
            return self._stream(other, source, target)
        if (copy := self.head(target)) is None:
            raise StoreError(f"{self.uri(target)}: copied from {other.uri(source)}, and not there")
        return copy

    def copy_many(
        self, other: Any, pairs: Iterator[tuple[str, str]], parallel: int, copied: Callable[[], None]
    ) -> Gone:
        if not self.copies_within(other):
            from resources.store.bulk import copy_in_threads

            return copy_in_threads(self, other, pairs, min(parallel, PARALLEL_FILES), copied)
        return _BulkCopy(self, other, pairs, copied).run(parallel)

    def _copier(self, source_bucket: str) -> S3Store:
        """A client that copies from another bucket into this one.

        obstore copies within one bucket. It names the source by its bucket and takes the target's address from its endpoint;
        given the virtual-hosted style it does not put the bucket into the address again. So a client for the *source*
        bucket on the *target* bucket's address is one that copies between the two, signed as usual.
        """
        if source_bucket not in self._copiers:
            self._copiers[source_bucket] = self._open(source_bucket, RETRIES)
        return self._copiers[source_bucket]

    def _stream(self, other: Any, source: str, target: str) -> StoredObject:
        """Through this process, in parts: from another kind of store or service, or larger than CopyObject takes."""
        if not isinstance(other, S3Backend):
            path = other.path_of(source)
            if not path.is_file():
                raise missing(str(path))
            return self.put_file(target, path)

        async def through() -> tuple[int, Any]:
            found = await obstore.get_async(other.client, other.full(source))
            put = obstore.put_async(
                self.client, self.full(target), found.stream(PART_BYTES), chunk_size=PART_BYTES, max_concurrency=4
            )
            return found.meta["size"], await put

        with StoreErrors(other.uri(source)), ThreadPoolExecutor(1) as thread:
            size, result = thread.submit(lambda: asyncio.run(through())).result()
        return StoredObject(target, size, _plain_etag(result["e_tag"]))

    # -- listing

    def list(self, prefix: str) -> Iterator[StoredObject]:
        for batch in self.list_table(prefix, 1, True).to_batches():
            for key, size, etag in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield StoredObject(key, size, etag)

    def list_folders(self, prefix: str) -> Names:
        with StoreErrors(self.uri(prefix)):
            found = obstore.list_with_delimiter(self.client, self.full(prefix) or None)["common_prefixes"]
        return sorted(folder.rstrip("/").rsplit("/", 1)[-1] for folder in found)

    def list_table(self, prefix: str, shards: int, etags: bool) -> pa.Table:
        base = f"{self.full(prefix)}/" if self.full(prefix) else ""
        start = len(self.prefix) + 1 if self.prefix else 0
        return Listing(self.client, base, start, self.uri(prefix), self._page).table(shards)

    def _page(self, base: str, offset: str | None) -> Page:
        """One page of a listing by boto3, whatever its keys look like: (paths, sizes, etags), and where to go on."""
        from botocore.config import Config

        client = aws.client("s3", self.environment, config=Config(s3={"addressing_style": self._style()}))
        answer = client.list_objects_v2(
            Bucket=self.bucket, Prefix=base, **({"StartAfter": offset} if offset is not None else {})
        )
        found = answer.get("Contents", [])
        if not found:
            return None, None
        columns = (
            pa.array([entry["Key"] for entry in found], pa.string()),
            pa.array([entry["Size"] for entry in found], pa.int64()),
            pa.array([entry["ETag"] for entry in found], pa.string()),
        )
        return columns, found[-1]["Key"] if answer["IsTruncated"] else None

    # -- addresses

    def full(self, key: str) -> str:
        """The key within the bucket."""
        return f"{self.prefix}/{key}".strip("/") if self.prefix else key

    def uri(self, key: str) -> str:
        return f"{self.url}/{key}"

    def _style(self) -> str:
        """'path' or 'virtual' addressing; an address without a name, and a bucket with dots, allow only 'path'."""
        if self.environment.get("DOCML_S3_PATH_STYLE", "false").strip().lower() in ("1", "true", "yes", "on"):
            return "path"
        if "." in self.bucket:
            return "path"
        host = urlsplit(self.service).hostname or "" if self.service else ""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return "path" if host == "localhost" else "virtual"
        return "path"

    def _address(self) -> str:
        """The URL of this bucket."""
        suffix = "amazonaws.com.cn" if self.region.startswith("cn-") else "amazonaws.com"
        service = urlsplit(self.service or f"https://s3.{self.region}.{suffix}")
        if self._style() == "path":
            return f"{service.scheme}://{service.netloc}{service.path}/{self.bucket}"
        return f"{service.scheme}://{self.bucket}.{service.netloc}{service.path}"

    def _open(self, bucket: str, retries: "RetryConfig") -> S3Store:
        """A client at this bucket's address; `bucket` is the one that it copies from (see `_copier`)."""
        address = self._address()
        options: dict[str, Any] = {
            # Both names of the setting: the specific one would otherwise be read from the process's own environment.
            "endpoint": address,
            "aws_endpoint_url_s3": address,
            "virtual_hosted_style_request": True,
            "region": self.region,
            **self._credentials,
        }
        if key := self.environment.get("DOCML_KMS_KEY"):
            options |= {"server_side_encryption": "aws:kms", "sse_kms_key_id": key, "sse_bucket_key_enabled": True}
        return S3Store(
            bucket,
            client_options={**TIMEOUTS, "allow_http": address.startswith("http://")},
            retry_config=retries,
            **options,
        )

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
        self.client = target._copier(source.bucket)
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
            try:
                await obstore.copy_async(self.client, self.source.full(source), self.target.full(target))
            except FileNotFoundError:
                self.gone.append(Missing(source, target))
                continue
            except BaseError as error:
                if TOO_LARGE_TO_COPY not in str(error):
                    raise store_error(self.source.uri(source), error) from error
                await asyncio.to_thread(self.target._stream, self.source, source, target)
            self.copied()


def _credentials(environment: Mapping[str, str]) -> dict[str, Any]:
    """Keys from the environment, else boto3's standard chain, refreshed as they expire."""
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        keys = {
            "access_key_id": environment["AWS_ACCESS_KEY_ID"],
            "secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
        }
        if environment.get("AWS_SESSION_TOKEN"):
            keys["session_token"] = environment["AWS_SESSION_TOKEN"]
        return keys
    session = aws.session(environment)
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return {"credential_provider": Boto3CredentialProvider(session, ttl=timedelta(minutes=5))}
    except ValueError:
        raise SettingError(
            "no AWS credentials: expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE) or a role"
        ) from None


def _plain_etag(etag: str | None) -> str:
    return (etag or "").strip('"')
