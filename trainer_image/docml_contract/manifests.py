"""MANIFEST.json (a finished folder) and OUTPUT.json (what a job hands over), both written last."""

import hashlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from docml_contract.base import Document
from docml_contract.errors import IncompleteArtifact
from docml_contract.names import OUTPUT

SCHEMA_VERSION = 1


class FileEntry(Document):
    """One file of a folder."""

    path: str = Field(description="path relative to the folder, '/' as separator")
    size: int = Field(ge=0, description="bytes")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the content")


class Manifest(Document):
    """Says that a folder is finished. A folder without one does not exist for readers."""

    schema_version: int = SCHEMA_VERSION
    asset: str = Field(description="the Dagster asset that the folder belongs to")
    experiment: str
    run: int = Field(ge=1, description="the run that made it")
    created_at: str = Field(description="UTC, ISO 8601")
    cache_key: str = Field(description="hash of the inputs; decides reuse")
    data_version: str = Field(description="hash of the meaning of the content")
    inputs: dict[str, str] = Field(description="asset name -> data version that was read")
    code_version: str
    files: tuple[FileEntry, ...]

    def file(self, path: str) -> FileEntry:
        """The entry of `path`, or IncompleteArtifact."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise IncompleteArtifact(
            f"{self.asset} of {self.experiment} run {self.run}: its manifest does not name {path!r}"
        )


class JobOutput(Document):
    """Says that a job's output folder is complete. Written by the trainer as its last act."""

    schema_version: int = SCHEMA_VERSION
    command: str = Field(description="prepare, train, infer or predict")
    data_version: str = Field(description="hash of the meaning of the output")
    files: tuple[FileEntry, ...]
    facts: dict[str, Any] = Field(default_factory=dict, description="small results worth showing as metadata")


class PreparedData(Document):
    """preparation/prepared.json: which prepared data a run uses."""

    folder: str = Field(description="key prefix of the prepared data in the store")
    made_by_run: int
    data_version: str


def utc_now() -> str:
    """Now, UTC, ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256_file(path: Path) -> str:
    """sha256 of a file's content, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_folder(folder: Path, exclude: Iterable[str] = (OUTPUT,)) -> tuple[FileEntry, ...]:
    """Entries of all files below `folder`, sorted by path."""
    left_out = set(exclude)
    entries = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder).as_posix()
        if relative not in left_out:
            entries.append(FileEntry(path=relative, size=path.stat().st_size, sha256=sha256_file(path)))
    return tuple(entries)


def verify_folder(folder: Path, files: Iterable[FileEntry]) -> None:
    """Check sizes and hashes; IncompleteArtifact names every file that is missing or differs."""
    problems = []
    for entry in files:
        path = folder / entry.path
        if not path.is_file():
            problems.append(f"{entry.path}: missing")
        elif path.stat().st_size != entry.size:
            problems.append(f"{entry.path}: {path.stat().st_size} bytes, expected {entry.size}")
        elif sha256_file(path) != entry.sha256:
            problems.append(f"{entry.path}: content differs from its sha256 {entry.sha256[:12]}…")
    if problems:
        raise IncompleteArtifact(f"{folder}: {'; '.join(problems)}")


def write_atomically(path: Path, data: bytes) -> None:
    """Write so that a reader sees the old content or the new one, and a crash leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    with draft.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)


def write_output(folder: Path, command: str, data_version: str, facts: dict[str, Any]) -> JobOutput:
    """Describe `folder` and write its OUTPUT.json, the last file of a job."""
    output = JobOutput(command=command, data_version=data_version, files=describe_folder(folder), facts=facts)
    write_atomically(folder / OUTPUT, output.to_bytes())
    return output
