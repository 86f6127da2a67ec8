"""S3 as obstore reaches it: addresses, credentials, clients, outages, errors. What obstore does not promise is used here only.

Not promised: that a client for one bucket on another's address copies between the two (`copier`), the words by which its error
texts end (`store_error`), by which they tell what may pass (`is_passing`).
"""

import ipaddress
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from obstore.exceptions import BaseError, InvalidPathError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from resources import aws
from resources.errors import SettingError, StoreError
from resources.store.objects import OUTAGE_SECONDS, missing_key

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# An outage is spoken of once it has lasted, and again now and then.
SAY_AFTER_SECONDS, SAY_EVERY_SECONDS = 2.0, 30.0
LONGEST_PAUSE_SECONDS = 10.0
# obstore itself tries nothing again, or only the parts of a large object: what went before need not be sent anew.
RETRY_NOTHING: "RetryConfig" = {"max_retries": 0}
RETRY_PARTS: "RetryConfig" = {
    "max_retries": 3,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
    "retry_timeout": timedelta(seconds=20),
}
TIMEOUTS: "ClientConfig" = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(minutes=10)}
# A service that takes a question and says nothing is out of reach as well, and that is told. A part of PART_BYTES goes through in this
# time at 1.1 Mbit/s; copies within the service may take longer.
SILENCE = timedelta(minutes=2)
REFUSALS = (PermissionDeniedError, UnauthenticatedError)
# What obstore says of a service that is busy, broken or out of reach: 408, 429, 5xx, an error inside an accepted answer, and
# connections that are refused, reset, timed out or lead nowhere.
_PASSING = re.compile(
    r"status code: (408|429|5\d\d)|<Code>(RequestTimeout|InternalError|SlowDown|ServiceUnavailable)</Code>|HTTP error:"
)
_NEVER_PASSING = re.compile("certificate", re.IGNORECASE)
log = logging.getLogger("docml.store")
_speaking = threading.Lock()
T = TypeVar("T")
# Columns of one page (paths, sizes, etags; None: nothing found), and where to go on (None: nowhere).
Page = tuple[tuple[Any, Any, Any] | None, str | None]


class BucketClients:
    """obstore's clients of one bucket, for reading, writing, and copying into it.

    environment: credentials, region and addresses, as the AWS SDKs name them. patience: seconds that an outage is waited for.
    """

    def __init__(self, bucket: str, environment: Mapping[str, str], patience: float = OUTAGE_SECONDS) -> None:
        self.bucket = bucket
        self.patience = patience
        self.environment = environment
        self.region = aws.region(environment) or "us-east-1"
        self.service = aws.endpoint("s3", environment)
        self._credentials = _credentials(environment)
        self._copiers: dict[str, S3Store] = {}
        self.outage_told = 0.0  # when somebody last spoke of an outage that goes on: many requests may wait for its end

    @cached_property
    def client(self) -> S3Store:
        """For single requests."""
        return self._open(self.bucket, RETRY_NOTHING, {**TIMEOUTS, "read_timeout": SILENCE})

    @cached_property
    def transfers(self) -> S3Store:
        """For objects of any size, which travel in parts."""
        return self._open(self.bucket, RETRY_PARTS)

    def ask(self, uri: str, work: Callable[[], T]) -> T:
        """`work()`, again while the service does not answer; its errors as the store's."""
        outage = Outage(uri, self)
        while True:
            try:
                answer = work()
            except FileNotFoundError:
                raise missing_key(uri) from None
            except InvalidPathError:
                raise
            except BaseError as error:
                time.sleep(outage.pause(error))
            else:
                outage.over()
                return answer

    def copier(self, source_bucket: str) -> S3Store:
        """A client that copies from another bucket into this one.

        obstore copies within one bucket. It names the source by its bucket and takes the target's address from its endpoint;
        given the virtual-hosted style it does not put the bucket into the address again. So a client for the *source*
        bucket on the *target* bucket's address is one that copies between the two, signed as usual.
        """
        if source_bucket not in self._copiers:
            self._copiers[source_bucket] = self._open(source_bucket, RETRY_NOTHING)
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

    def _open(self, bucket: str, retries: "RetryConfig", timeouts: "ClientConfig" = TIMEOUTS) -> S3Store:
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
            client_options={**timeouts, "allow_http": address.startswith("http://")},
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


class Outage:
    """Whether and how long to wait when the service does not answer. One for each operation; one of those that wait speaks for all."""

    def __init__(self, uri: str, clients: BucketClients) -> None:
        self.uri, self.patience, self._clients = uri, clients.patience, clients
        self._began: float | None = None
        self._attempts = 0

    def pause(self, error: BaseError) -> float:
        """Seconds to wait before the next attempt. Raises StoreError if that is no use, or has been for long enough."""
        now = time.monotonic()
        self._began = self._began or now
        lasted = now - self._began
        if not is_passing(error):
            raise store_error(self.uri, error) from error
        if lasted >= self.patience:
            raise StoreError(
                f"{self.uri}: S3 did not answer for {lasted:,.0f} s: {_detail(error)} (a job that runs goes on, and nothing is lost: "
                "see why it cannot be reached, then give the same command again)"
            ) from error
        if lasted >= SAY_AFTER_SECONDS and self._is_to_speak(now):
            log.warning(
                "%s: the store does not answer (%s); waiting for it up to %.0f s, %.0f s so far",
                self.uri,
                _detail(error)[:200],
                self.patience,
                lasted,
            )
        self._attempts += 1
        return random.uniform(0, min(LONGEST_PAUSE_SECONDS, 0.1 * 2 ** min(self._attempts, 20), self.patience))

    def _is_to_speak(self, now: float) -> bool:
        with _speaking:
            told = self._clients.outage_told
            if told and now - told < SAY_EVERY_SECONDS:
                return False
            self._clients.outage_told = now
            return True

    def over(self) -> None:
        """The service answers: the next outage is another one."""
        if self._began and self._clients.outage_told:
            self._clients.outage_told = 0.0
            log.warning("%s: the store answers again after %.0f s", self.uri, time.monotonic() - self._began)
        self._began, self._attempts = None, 0


def is_passing(error: BaseError) -> bool:
    """Whether another attempt may succeed: the service was busy, broken or out of reach."""
    return (
        bool(_PASSING.search(str(error))) and not _NEVER_PASSING.search(str(error)) and not isinstance(error, REFUSALS)
    )


def store_error(uri: str, error: BaseError) -> StoreError:
    """The store's error for one of obstore's."""
    remedy = "the service refused"
    if isinstance(error, REFUSALS):
        remedy = "check the credentials (the standard AWS chain) and what they may do in this bucket"
    return StoreError(f"{uri}: {_detail(error)} ({remedy})")


def _detail(error: BaseError) -> str:
    return str(error).split("\n\nDebug source")[0].strip()[:600]


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
