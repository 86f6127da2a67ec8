"""S3 as obstore reaches it: addresses, credentials, clients, errors, listings. What obstore does not promise is used here only.

Not promised: that a client for one bucket on another's address copies between the two (`copier`), the words by which its error
texts end (`store_error`), and that a listing stops at keys which it does not represent (`Listing`).
"""

import ipaddress
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
import pyarrow as pa
import pyarrow.compute as pc
from obstore.exceptions import BaseError, InvalidPathError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from resources import aws
from resources.errors import SettingError, StoreError
from resources.store.objects import TABLE_SCHEMA, missing_key

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# Dropped connections, timeouts and 5xx (503 SlowDown among them) are tried again with exponential backoff and jitter.
RETRIES: "RetryConfig" = {
    "max_retries": 10,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2},
    "retry_timeout": timedelta(minutes=3),
}
TIMEOUTS: "ClientConfig" = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(minutes=10)}
# Errors that no further attempt changes.
REFUSALS = (PermissionDeniedError, UnauthenticatedError)
# Where key ranges begin: GUIDs vary from their first character on. `~~~` sorts just before the next character and names no
# folder, on which servers that list folders before their content would stumble.
RANGE_STARTS = [f"{before}~~~" for before in "0123456789ABCDEFabcde"]
PAGE = 1000
# Pages read before several ranges are: most listings end before, and a range costs a request even where nothing lies.
FIRST_PAGES = 10
# Columns of one page (paths, sizes, etags; None: nothing found), and where to go on (None: nowhere).
Page = tuple[tuple[Any, Any, Any] | None, str | None]


class BucketClients:
    """obstore's clients of one bucket, for reading, writing, and copying into it.

    environment: credentials, region and addresses, as the AWS SDKs name them.
    """

    def __init__(self, bucket: str, environment: Mapping[str, str]) -> None:
        self.bucket = bucket
        self.environment = environment
        self.region = aws.region(environment) or "us-east-1"
        self.service = aws.endpoint("s3", environment)
        self._credentials = _credentials(environment)
        self._copiers: dict[str, S3Store] = {}

    @cached_property
    def client(self) -> S3Store:
        """Reads and writes, trying again what may pass."""
        return self._open(self.bucket, RETRIES)

    @cached_property
    def unretried(self) -> S3Store:
        """For conditional puts, whose caller tries again: after a retry out of sight, 412 may speak of our own object."""
        return self._open(self.bucket, {**RETRIES, "max_retries": 0})

    def copier(self, source_bucket: str) -> S3Store:
        """A client that copies from another bucket into this one.

        obstore copies within one bucket. It names the source by its bucket and takes the target's address from its endpoint;
        given the virtual-hosted style it does not put the bucket into the address again. So a client for the *source*
        bucket on the *target* bucket's address is one that copies between the two, signed as usual.
        """
        if source_bucket not in self._copiers:
            self._copiers[source_bucket] = self._open(source_bucket, RETRIES)
        return self._copiers[source_bucket]

    def address(self) -> str:
        """The URL of this bucket."""
        suffix = "amazonaws.com.cn" if self.region.startswith("cn-") else "amazonaws.com"
        service = urlsplit(self.service or f"https://s3.{self.region}.{suffix}")
        if self._style() == "path":
            return f"{service.scheme}://{service.netloc}{service.path}/{self.bucket}"
        return f"{service.scheme}://{self.bucket}.{service.netloc}{service.path}"

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

    def _open(self, bucket: str, retries: "RetryConfig") -> S3Store:
        """A client at this bucket's address; `bucket` is the one that it copies from (see `copier`)."""
        address = self.address()
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

    def page(self, base: str, offset: str | None) -> Page:
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


class StoreErrors:
    """Turns what obstore raises in its block into the store's errors, with the object's URI and a remedy."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise missing_key(self.uri) from None
        if isinstance(error, BaseError) and not isinstance(error, InvalidPathError):
            raise store_error(self.uri, error) from error


def store_error(uri: str, error: BaseError) -> StoreError:
    """The store's error for one of obstore's."""
    remedy = "the service refused or could not be reached"
    if isinstance(error, REFUSALS):
        remedy = "check the credentials (the standard AWS chain) and what they may do in this bucket"
    detail = str(error).split("\n\nDebug source")[0].strip()
    return StoreError(f"{uri}: {detail[:600]} ({remedy})")


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


class Listing:
    """All keys that begin with `base` (empty, or ending in a slash), without their first `start` characters."""

    def __init__(self, clients: BucketClients, base: str, start: int, uri: str) -> None:
        self.clients, self.base, self.start, self.uri = clients, base, start, uri

    def table(self, ranges: int) -> pa.Table:
        """TABLE_SCHEMA, sorted by key."""
        batches, offset = self._range(None, None, FIRST_PAGES if ranges > 1 else None)
        if offset is not None:
            seen = offset.removeprefix(self.base)
            starts = [start for start in _spread(RANGE_STARTS, ranges - 1) if start > seen]
            bounds = list(zip([seen, *starts], [*starts, None], strict=True))
            with ThreadPoolExecutor(len(bounds)) as pool:
                for part, _ in pool.map(lambda ends: self._range(*ends), bounds):
                    batches += part
        table = pa.Table.from_batches(batches, schema=TABLE_SCHEMA)
        keys = table["key"]
        if table.num_rows > 1 and not pc.all(pc.less_equal(keys.slice(0, len(keys) - 1), keys.slice(1))).as_py():
            table = table.sort_by("key")  # not every server lists in byte order
        return table

    def _range(
        self, start: str | None, end: str | None, pages: int | None = None
    ) -> tuple[list[pa.RecordBatch], str | None]:
        """Batches of the keys after `start` and up to `end`, both relative to the base; and the last key if there were more
        than `pages`."""
        batches: list[pa.RecordBatch] = []
        offset = self.base + start if start else None
        last = self.base + end if end else None
        while True:
            try:
                with StoreErrors(self.uri):
                    prefix = self.base.rstrip("/") or None
                    for chunk in obstore.list(
                        self.clients.client, prefix, offset=offset, chunk_size=PAGE, return_arrow=True
                    ):
                        batch = pa.record_batch(chunk)
                        offset = batch["path"][-1].as_py()
                        if self._keep(batch["path"], batch["size"], batch["e_tag"], last, batches):
                            return batches, None
                        if pages is not None and len(batches) >= pages and batch.num_rows == PAGE:
                            return batches, offset
                return batches, None
            except InvalidPathError:
                # A key such as 'a//b' or 'a/../b', which obstore does not represent: read on for a page by other means.
                page, offset = self.clients.page(self.base, offset)
                done = page is not None and self._keep(*page, last, batches)
                if done or offset is None:
                    return batches, None

    def _keep(self, paths: Any, sizes: Any, etags: Any, last: str | None, batches: list[pa.RecordBatch]) -> bool:
        """Append what lies in the range to `batches`; whether the range ends here (all of a page lies behind it)."""
        keys = pc.utf8_slice_codeunits(paths, self.start) if self.start else paths
        columns = [keys, sizes, pc.utf8_trim(etags, characters='"')]
        typed = [pc.cast(column, field.type) for column, field in zip(columns, TABLE_SCHEMA, strict=True)]
        batch = pa.RecordBatch.from_arrays(typed, schema=TABLE_SCHEMA)
        kept = batch if last is None else batch.filter(pc.less_equal(paths, last))
        if kept.num_rows:
            batches.append(kept)
        return batch.num_rows > 0 and kept.num_rows == 0


def _spread(values: list[str], count: int) -> list[str]:
    """`count` of the values, evenly spread; all of them if there are not more."""
    if count >= len(values):
        return values
    return [values[(i + 1) * len(values) // (count + 1)] for i in range(count)]
