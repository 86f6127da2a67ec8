"""Preparation jobs for tests: documents on disk, tables, spec, ready to run."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from docml_contract import names
from docml_contract.jobs import Channel, Compute, JobSpec, PrepareTask
from tests.docml_trainer.jobfolder import JobFolder

ENCODER = """\
import json
import zlib
import datasets

def get_dataset_features(context):
    return datasets.Features({"input_ids": datasets.List(datasets.Value("int64"))})

def encode_data(instance, context):
    text = json.loads(instance["raw_text.json"].read_text(encoding="utf-8"))["text"]
    ids = [zlib.crc32(word.encode()) % 30_000 for word in text.split()]
    length = context.hyperparameters.get("max_length", 1000)
    return {"input_ids": ids[:length], "untruncated_length": len(ids)} if ids else None
"""


@dataclass(frozen=True)
class Doc:
    """A document of a test: its files by name (text becomes a raw_text.json)."""

    guid: str
    label: str
    text: str = ""
    group: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)

    def contents(self) -> Mapping[str, bytes]:
        return self.files or {"raw_text.json": json.dumps({"text": self.text}).encode()}


def documents(count: int, labels: Sequence[str] = ("invoice", "letter"), start: int = 0) -> list[Doc]:
    """Documents without near-duplicates."""
    return [
        Doc(
            f"doc-{i:05d}",
            labels[i % len(labels)],
            " ".join(f"w{i * 7919 + j * j * (i + 1)}" for j in range(5 + i % 20)),
        )
        for i in range(start, start + count)
    ]


def artifacts_table(docs: Sequence[Doc]) -> bytes:
    """artifacts.parquet: one row a file."""
    rows = [
        {
            "artifact_guid": doc.guid,
            "label": doc.label,
            "group": doc.group,
            "file": file,
            "path": f"{doc.guid}/v1/{file}",
            "etag": hashlib.sha256(content).hexdigest(),
        }
        for doc in docs
        for file, content in doc.contents().items()
    ]
    columns = ("artifact_guid", "label", "group", "file", "path", "etag")
    table = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in columns})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def preparation(
    base: Path,
    docs: Sequence[Doc],
    *,
    functions: str = ENCODER,
    previous_splits: Path | None = None,
    artifacts: Path | None = None,
    **task: Any,
) -> JobFolder:
    """Lay out a preparation job. `artifacts`: a channel that another job folder already filled."""
    job = JobFolder(base, "prepare")
    channel = job.folders.channel("artifacts")
    if artifacts:
        channel.parent.mkdir(parents=True, exist_ok=True)
        channel.symlink_to(artifacts)
    else:
        write_artifacts(job.channel("artifacts"), docs)
    settings: dict[str, Any] = {
        "model_names": ("toy",),
        "own_hyperparameters": {},
        "model_input_files": ("raw_text.json",),
        "processes": 2,
        **task,
    }
    spec = JobSpec(
        kind="processing",
        experiment="EXP-1-toy",
        run=1,
        step="preparation-merge" if settings.get("phase") == "merge" else "preparation",
        task=PrepareTask(**settings),
        channels=(Channel(name="artifacts", prefix="EXP-1-toy/data/reconciled_artifacts"),),
        compute=Compute(instance_type="local"),
    )
    files: dict[str, bytes | str] = {names.USER_FUNCTIONS: functions, names.ARTIFACTS_TABLE: artifacts_table(docs)}
    if previous_splits:
        files[names.PREVIOUS_SPLITS] = previous_splits.read_bytes()
    job.write_spec(spec, files)
    return job


def write_artifacts(channel: Path, docs: Sequence[Doc]) -> None:
    for doc in docs:
        folder = channel / doc.guid / "v1"
        folder.mkdir(parents=True)
        for file, content in doc.contents().items():
            (folder / file).write_bytes(content)


def splits_of(job: JobFolder) -> dict[str, str]:
    """Split by GUID."""
    table = pq.read_table(job.output / names.SPLITS_TABLE)
    return dict(zip(table["artifact_guid"].to_pylist(), table["split"].to_pylist(), strict=True))


def metadata_of(job: JobFolder) -> dict[str, Any]:
    content = json.loads((job.output / names.SPLIT_METADATA).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content
