"""What the service does between S3 and a job's disk, with boto3 against the tests' S3 server."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any


def split(uri: str) -> tuple[str, str]:
    """(bucket, key) of an s3:// URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


class Transfer:
    """Downloads channels, uploads outputs, mirrors checkpoints."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._mirrored: dict[Path, int] = {}

    def download(self, source: dict[str, Any], folder: Path, shard: tuple[int, int]) -> None:
        """One channel: an S3Prefix or a ManifestFile, replicated or sharded by key."""
        part = shard if source.get("S3DataDistributionType") == "ShardedByS3Key" else (0, 1)
        if source["S3DataType"] == "ManifestFile":
            self._download_manifest(source["S3Uri"], folder, part)
        else:
            self.download_prefix(source["S3Uri"], folder, part=part)

    def download_prefix(self, uri: str, folder: Path, *, part: tuple[int, int] = (0, 1), required: bool = True) -> None:
        """Everything below a prefix (which matches inside path segments too, as in S3)."""
        bucket, prefix = split(uri)
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))
        if not keys and required:
            raise FileNotFoundError(f'NoSuchKey (404): No S3 objects found under S3 URL "{uri}"')
        folder.mkdir(parents=True, exist_ok=True)
        base = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
        for key in keys[part[0] :: part[1]]:
            relative = key.removeprefix(base) if key.startswith(base) else key.rsplit("/", 1)[-1]
            self._get(bucket, key, folder / relative)

    def _download_manifest(self, uri: str, folder: Path, part: tuple[int, int]) -> None:
        bucket, key = split(uri)
        entries = json.loads(self.client.get_object(Bucket=bucket, Key=key)["Body"].read())
        prefix, *paths = entries
        bucket, base = split(prefix["prefix"])
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths[part[0] :: part[1]]:
            self._get(bucket, base + path, folder / path)

    def _get(self, bucket: str, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            body = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        except self.client.exceptions.NoSuchKey as error:
            raise FileNotFoundError(f"NoSuchKey (404): s3://{bucket}/{key}") from error
        path.write_bytes(body)

    def upload(self, folder: Path, uri: str) -> None:
        """Every file below a folder."""
        bucket, prefix = split(uri.rstrip("/"))
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            key = f"{prefix}/{path.relative_to(folder).as_posix()}".lstrip("/")
            self.client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())

    def upload_archive(self, folder: Path, uri: str) -> None:
        """A folder as one tar.gz."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name)
        bucket, key = split(uri)
        self.client.put_object(Bucket=bucket, Key=key, Body=buffer.getvalue())

    def sync(self, folder: Path, uri: str) -> None:
        """Upload what changed since the last call. A file that vanishes meanwhile is skipped; nothing is ever deleted."""
        bucket, prefix = split(uri.rstrip("/"))
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            try:
                changed = path.stat().st_mtime_ns
                if self._mirrored.get(path) == changed:
                    continue
                body = path.read_bytes()
            except FileNotFoundError:
                continue
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            self.client.put_object(Bucket=bucket, Key=key, Body=body)
            self._mirrored[path] = changed
