"""MANIFEST.json (a finished folder) and OUTPUT.json (what a job hands over), both written last."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from docml_contract import names
from docml_contract.base import Document, IncompleteArtifact, digest
from docml_contract.names import OUTPUT

SCHEMA_VERSION = 1
HASHING_THREADS = 4  # hashing leaves Python to others, and is bound by the disk with more


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

    def file(self, path: str) -> FileEntry:
        """The entry of `path`, or IncompleteArtifact."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise IncompleteArtifact(f"{OUTPUT} of the {self.command} job does not name {path!r}")


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
    """Entries of all files below `folder`, sorted by path; exclude: files and folders directly below it."""
    left_out = set(exclude)
    entries = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder).as_posix()
        if relative.split("/", 1)[0] not in left_out:
            entries.append(FileEntry(path=relative, size=path.stat().st_size, sha256=sha256_file(path)))
    return tuple(entries)


def find_damage(folder: Path, files: Iterable[FileEntry]) -> list[str]:
    """A sentence on every file that is missing, or has another size or content than its entry says."""

    def problem(entry: FileEntry) -> str | None:
        path = folder / entry.path
        if not path.is_file():
            return f"{entry.path}: missing"
        if path.stat().st_size != entry.size:
            return f"{entry.path}: {path.stat().st_size} bytes, expected {entry.size}"
        if sha256_file(path) != entry.sha256:
            return f"{entry.path}: content differs from its sha256 {entry.sha256[:12]}…"
        return None

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return [found for found in pool.map(problem, files) if found]


def verify_folder(folder: Path, files: Iterable[FileEntry], name: str | None = None, remedy: str = "") -> None:
    """Check sizes and hashes; IncompleteArtifact names every file that is missing or differs. `name`: of the folder, for people."""
    if damage := find_damage(folder, files):
        raise IncompleteArtifact(f"{name or folder}: {'; '.join(damage)}{remedy and f'. {remedy}'}")


def write_atomically(path: Path, data: bytes) -> None:
    """Write so that a reader sees the old content or the new one, and a crash leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    with draft.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)


def write_output(
    folder: Path, command: str, data_version: str, facts: dict[str, Any], exclude: Iterable[str] = ()
) -> JobOutput:
    """Describe `folder` and write its OUTPUT.json, the last file of a job. exclude: folders with an OUTPUT.json of their own."""
    files = describe_folder(folder, (OUTPUT, *exclude))
    output = JobOutput(command=command, data_version=data_version, files=files, facts=facts)
    write_atomically(folder / OUTPUT, output.to_bytes())
    return output


class ModelContext(Document):
    """The model that a deployment folder holds, and how its documents become its inputs."""

    schema_version: int = 1
    experiment: str
    run: int
    model_name: str
    model_names: tuple[str, ...] = Field(description="all models of the run: more than one prefix their columns")
    labels: tuple[str, ...] = Field(description="in the order of the model's outputs")
    own_hyperparameters: dict[str, Any] = Field(description="the experimenter's own, all that encode_data sees")
    production_files: tuple[str, ...] = Field(
        description="FILES_FROM_PROD: names and patterns of what a document brings"
    )
    model_input_files: tuple[str, ...] = Field(description="names and patterns of the files that encode_data gets")
    optional_files: tuple[str, ...] = Field((), description="FILES_OPTIONAL: those that a document may lack")
    has_process_func: bool = Field(description="whether files are made of what a document brings")


# Raise a step's number when its code changes what it produces from the same inputs: it enters every cache key and is
# shown as the asset's code_version.
CODE_VERSIONS: dict[str, str] = {
    names.EXPERIMENT_SNAPSHOT: "1",
    names.RECONCILED_DATA: "1",
    names.LABEL_COUNTS: "1",
    names.ENCODED_SPLITS: "1",
    names.BEST_MODEL: "1",
    names.INFERENCE_REPORT: "1",
    names.DEPLOYMENT: "1",
    names.DEPLOYED_ENDPOINT: "1",
    names.CLASSIFIED_DOCUMENTS: "1",
}


def cache_key(asset: str, **inputs: Any) -> str:
    """sha256 over the asset's name, its code version and its inputs (JSON values)."""
    return digest({"asset": asset, "code_version": CODE_VERSIONS[asset], "inputs": inputs})


def snapshot_version(settings: dict[str, Any], functions_sha256: str) -> str:
    """Data version of a snapshot: its frozen settings and the text of its functions."""
    return digest(["snapshot", settings, functions_sha256])


def label_counts_version(counts: dict[str, int]) -> str:
    """Data version of the label counts."""
    return digest(["label_counts", counts])


def model_version(weights: dict[str, str], exports: dict[str, Any]) -> str:
    """Data version of a run's models: by model, the sha256 of its weights and its export.json."""
    return digest(["model", weights, exports])
