"""What a request holds: documents, each a few files, read strictly. Whatever is wrong with it is one sentence and a status."""

import base64
import binascii
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from docml_contract.file_names import is_optional, matches, refusal
from docml_contract.manifests import ModelContext
from docml_trainer.errors import TrainerError

MAX_BYTES = 6_291_456  # of a request, as a SageMaker endpoint takes it
MAX_DOCUMENTS = 64  # of a request
MAX_URL_BYTES = 1_024  # of a reference, as long as S3's keys
MAX_REFERENCES = 1_000  # of a request
MAX_FOLLOWED_BYTES = 16 * MAX_BYTES  # of all that a request refers to
KEYS = ("artifact_guid", "files")
SOURCES = ("DOCML_PRODUCTION_FILES", "DOCML_STORE")  # below which references are followed
TOO_LARGE = (
    f"the request is larger than {MAX_BYTES:,} bytes: send fewer documents, or use an async endpoint or docml predict"
)


class RequestError(TrainerError):
    """A request that is not answered: an HTTP status, and one sentence for whoever asked."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class SentDocument:
    """A document: its GUID, or a name of ours, and its files."""

    guid: str
    files: Mapping[str, bytes]


class References:
    """Follows `s3` references below the deployment's own prefixes, and nowhere else."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        found = (environment.get(name, "").rstrip("/") for name in SOURCES)
        self.prefixes = tuple(f"{prefix}/" for prefix in found if prefix.startswith("s3://"))
        self._path_style = environment.get("DOCML_S3_PATH_STYLE", "").lower() in ("1", "true", "yes")
        self._client: Any = None

    def read(self, url: str) -> bytes:
        """The object's content. RequestError if it lies elsewhere, is not there, or is too large."""
        climbs = any(part in ("", ".", "..") for part in url[5:].split("/"))
        if not url.startswith(self.prefixes or ("\0",)) or climbs or not _is_key(url):
            where = " or ".join(self.prefixes) or "no prefix, since this deployment has none"
            raise RequestError(400, f"{ascii(url)[:200]} is not followed; expected a reference below {where}")
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, key = url.removeprefix("s3://").partition("/")
        try:
            found = self._s3().get_object(Bucket=bucket, Key=key)
            if found["ContentLength"] > MAX_BYTES:
                raise RequestError(
                    413, f"{url} is larger than {MAX_BYTES:,} bytes: use docml predict for such documents"
                )
            return bytes(found["Body"].read())
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "NoSuchBucket", "404"):
                raise RequestError(400, f"{url}: there is no such object") from None
            raise RequestError(503, f"{url} cannot be read now ({code})") from None
        except BotoCoreError as error:
            raise RequestError(503, f"{url} cannot be read now ({type(error).__name__})") from None

    def _s3(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            style = "path" if self._path_style else "auto"
            config = Config(
                s3={"addressing_style": style}, retries={"max_attempts": 2}, connect_timeout=5, read_timeout=20
            )
            region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or "us-east-1"
            self._client = boto3.client("s3", region_name=region, config=config)
        return self._client


class _FollowedReferences:
    """What one request refers to, as far as it may."""

    def __init__(self, references: References) -> None:
        self._references = references
        self._count = self._bytes = 0

    def read(self, url: str) -> bytes:
        self._count += 1
        if self._count > MAX_REFERENCES:
            raise RequestError(
                413, f"more than {MAX_REFERENCES:,} references: send fewer documents, or use docml predict"
            )
        content = self._references.read(url)
        self._bytes += len(content)
        if self._bytes > MAX_FOLLOWED_BYTES:
            raise RequestError(
                413,
                f"the references lead to more than {MAX_FOLLOWED_BYTES:,} bytes: send fewer documents, or use docml predict",
            )
        return content


def may_name_references(body: bytes) -> bool:
    """Whether reading the documents of this body may take asking S3; JSON may spell any letter as an escape."""
    return b"s3" in body or b"\\u00" in body


def _is_key(url: str) -> bool:
    try:
        return len(url.encode()) <= MAX_URL_BYTES
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def read_documents(body: bytes, context: ModelContext, references: References) -> tuple[list[SentDocument], bool]:
    """The documents of a body, and whether they came as a list. RequestError says what is missing or malformed."""
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error) or "nested too deeply"
        raise RequestError(400, f'the body is not JSON ({reason[:100]}); expected {{"files": {{…}}}}') from None
    many = isinstance(content, list)
    items = content if many else [content]
    if not items:
        raise RequestError(400, "the list is empty; expected at least one document")
    if len(items) > MAX_DOCUMENTS:
        raise RequestError(
            413,
            f"{len(items)} documents; expected at most {MAX_DOCUMENTS} per request: send several requests, or use docml predict",
        )
    followed = _FollowedReferences(references)
    return [
        _document(item, f"document {index + 1}: " if many else "", context, followed)
        for index, item in enumerate(items)
    ], many


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _document(item: Any, where: str, context: ModelContext, references: _FollowedReferences) -> SentDocument:
    if not isinstance(item, dict):
        raise RequestError(400, f"{where}found {_kind(item)}; expected an object with files")
    unknown = sorted(set(item) - set(KEYS))
    if unknown:
        raise RequestError(400, f"{where}unknown key {ascii(unknown[0])[:80]}; expected {' and '.join(KEYS)}")
    guid = item.get("artifact_guid", "document")
    if (reason := refusal(guid)) is not None:
        raise RequestError(400, f"{where}artifact_guid cannot be used: {reason}")
    files = item.get("files")
    if not isinstance(files, dict):
        raise RequestError(400, f"{where}files is {_kind(files)}; expected an object of file names and contents")
    names = ", ".join(context.production_files)
    for name in files:
        if (reason := refusal(name)) is not None:
            raise RequestError(400, f"{where}the file name {ascii(name)[:80]} cannot be used: {reason}")
        if not any(matches(name, entry) for entry in context.production_files):
            raise RequestError(400, f"{where}unknown file {ascii(name)[:80]}; expected {names}")
    for entry in context.production_files:
        if not is_optional(entry, context.optional_files) and not any(matches(name, entry) for name in files):
            raise RequestError(400, f"{where}lacks the file {entry}; expected {names}")
    return SentDocument(guid, {name: _content(value, f"{where}{name}", references) for name, value in files.items()})


def _content(value: Any, where: str, references: _FollowedReferences) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise RequestError(
                400, f"{where}: the text has half of a surrogate pair; expected text, or base64 for bytes"
            ) from None
    if isinstance(value, dict) and len(value) == 1:
        (kind, text), *_ = value.items()
        if kind == "base64" and isinstance(text, str):
            try:
                return base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                raise RequestError(400, f"{where}: not valid base64") from None
        if kind == "s3" and isinstance(text, str):
            return references.read(text)
    raise RequestError(400, f'{where}: found {_kind(value)}; expected text, {{"base64": text}} or {{"s3": url}}')


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    if isinstance(value, dict) and value:
        return f"an object with {', '.join(ascii(key)[:30] for key in list(value)[:3])}"
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
