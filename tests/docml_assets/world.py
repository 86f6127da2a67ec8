"""A small world for tests: production documents, a label database, a store, experiments; and jobs that end at once.

Everything is real but the jobs, which write what the trainer would have written.
"""

import hashlib
import io
import json
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from docml_assets.deployment import Deployment
from docml_assets.experiment.folder import ExperimentFolder
from docml_assets.runs.claims import Claim, claim_run
from docml_assets.steps.snapshot import frozen_settings
from docml_assets.steps.work import Work
from docml_contract import names
from docml_contract.base import digest
from docml_contract.jobs import InferTask, JobSpec, PredictTask, PrepareTask, TrainTask
from docml_contract.manifests import FileEntry, JobOutput, model_version
from docml_contract.units import by_artifact, document_guid, split_guid
from resources.jobs.interface import JobResult, Listener, Orphan
from resources.store import Store

LABELS = ("invoice", "letter")
SOURCE = """
def get_dataset_features(context):
    return {"ids": [int]}


def encode_data(instance, context):
    return {"ids": [1]}


def load_model(model_name, context):
    return model_name


def ordered_input_keys(model_name, context):
    return ["ids"]
"""


@dataclass
class World:
    """Folders of a deployment, and its parts."""

    root: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = {
            "DOCML_STORE": str(self.root / "storage"),
            "DOCML_PRODUCTION_FILES": str(self.root / "production"),
            "DOCML_LABELS_URL": f"sqlite:///{self.root / 'labels.sqlite'}",
            "DOCML_EXPERIMENTS": str(self.root / "experiments"),
        }
        with closing(self._database()) as database, database:
            database.execute("CREATE TABLE labels (artifact_guid TEXT, label TEXT, file_hash TEXT, customer TEXT)")
        for number in range(24):
            self.add_document(f"doc-{number:02d}", LABELS[number % 2], customer=f"customer-{number // 2}")

    def _database(self) -> sqlite3.Connection:
        return sqlite3.connect(self.root / "labels.sqlite")

    def add_document(self, guid: str, label: str, *, customer: str = "", file_hash: str | None = None) -> None:
        """A document in production, and its label."""
        folder = self.root / "production" / guid
        folder.mkdir(parents=True)
        (folder / "raw_text.json").write_text(
            json.dumps({"text": f"the text of {guid}, which is a {label} of some length"})
        )
        self.add_label(guid, label, customer=customer, file_hash=file_hash)

    def add_pages(self, guid: str, count: int) -> None:
        """Pages of a document in production, page_01.txt and so on."""
        for number in range(1, count + 1):
            path = self.root / "production" / guid / f"page_{number:02d}.txt"
            path.write_text(f"page {number} of the document {guid}")

    def add_label(self, guid: str, label: str, *, customer: str = "", file_hash: str | None = None) -> None:
        with closing(self._database()) as database, database:
            row = (guid, label, file_hash or hashlib.sha256(guid.encode()).hexdigest(), customer)
            database.execute("INSERT INTO labels VALUES (?, ?, ?, ?)", row)
        database.close()

    @property
    def deployment(self) -> Deployment:
        return Deployment(self.environment)

    @property
    def store(self) -> Store:
        return self.deployment.store

    def write_experiment(
        self,
        name: str = "EXP-1",
        *,
        source: str = SOURCE,
        hyperparameters: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Path:
        """An experiment folder; settings are keys of settings.ini in lower case."""
        folder = self.root / "experiments" / name
        folder.mkdir(parents=True, exist_ok=True)
        keys = {
            "model_names": "small",
            "labels_query": "SELECT artifact_guid, label, file_hash, customer FROM labels",
            "files_from_prod": "raw_text.json",
            "model_input_files": "raw_text.json",
            "split": "0.5, 0.25, 0.25",
            **settings,
        }
        lines = ["[settings]", *(f"{key.upper()} = {value}" for key, value in keys.items()), "[hyperparameters]"]
        lines += [f"{key} = {value}" for key, value in (hyperparameters or {"epochs": 1}).items()]
        (folder / "settings.ini").write_text("\n".join(lines) + "\n")
        (folder / names.USER_FUNCTIONS).write_text(source)
        return folder

    def claim(self, number: int, name: str = "EXP-1") -> Claim:
        folder = ExperimentFolder.load(self.root / "experiments" / name)
        return claim_run(self.store, folder, number, trigger={"kind": "test"}, request_id=f"test-{number}")

    def work(
        self,
        claim: Claim,
        jobs: "FakeJobs | None" = None,
        *,
        performed: frozenset[str] | None = None,
        **operation: Any,
    ) -> Work:
        """A `Work` on the run; `operation`: settings that do not freeze."""
        deployment = self.deployment
        return Work(
            place=claim.place,
            settings=frozen_settings(claim, operation),
            functions_source=claim.functions_source,
            store=deployment.store,
            production=deployment.production,
            labels=deployment.labels,
            jobs=jobs or FakeJobs(deployment.store),
            tracking=deployment.tracking,
            environment=self.environment,
            kind="local",
            image=None,
            holder="dagster-run",
            reporter=Notes(),
            performed=performed,
            use_case=claim.use_case,
        )


class Notes:
    """A reporter and a listener that keep what they hear."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.links: dict[str, str] = {}

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, what: str, done: int, total: int | None) -> None:
        pass

    def listener(self, model: str | None) -> Listener:
        return self

    def line(self, host: str, text: str) -> None:
        self.said.append(text)

    def event(self, event: dict[str, Any]) -> None:
        pass

    def status(self, text: str) -> None:
        self.said.append(text)


Hook = Callable[[JobSpec, Listener, threading.Event | None], None]


class FakeJobs:
    """Jobs that end at once with the trainer's output. `before` runs first: it may raise, wait or speak."""

    def __init__(self, store: Store, before: Hook | None = None) -> None:
        self.store = store
        self.before = before
        self.specs: list[JobSpec] = []
        self.files: list[Mapping[str, bytes]] = []

    @property
    def ran(self) -> list[str]:
        """`step` or `step model` of every job, in order; behind it the seed of one of several."""
        return [
            " ".join(filter(None, (spec.step, spec.model, spec.piece if spec.step != "prediction" else None)))
            for spec in self.specs
        ]

    def run(
        self,
        spec: JobSpec,
        files: Mapping[str, bytes],
        *,
        holder: str,
        listener: Listener,
        cancel: threading.Event | None = None,
    ) -> JobResult:
        assert spec.files == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        self.specs.append(spec)
        self.files.append(files)
        if self.before is not None:
            self.before(spec, listener, cancel)
        place = names.RunPlace(spec.experiment, spec.run)
        name = names.job_name(
            spec.kind, self.store.url, spec.experiment, spec.run, spec.step, f"{spec.piece or ''}{spec.model or ''}", 1
        )
        prefix = f"{place.job_folder(name)}/output"
        output, version = self._output(spec, files)
        entries = []
        for path, data in sorted(output.items()):
            self.store.put(f"{prefix}/{path}", data)
            entries.append(FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()))
        result = JobOutput(command=spec.task.command, data_version=version, files=tuple(entries))
        return JobResult(
            name=name,
            attempt=1,
            launched=True,
            output_prefix=prefix,
            output=result,
            started_at="2026-01-01T00:00:00+00:00",
            ended_at="2026-01-01T00:00:01+00:00",
            seconds=1.0,
            billable_seconds=1.0,
            cost_usd=0.5,
            links={"log": "https://example.com/log"},
        )

    def orphans(self, holder_ended: Callable[[str], bool], damage: list[str]) -> list[Orphan]:
        return []

    def stop(self, orphan: Orphan) -> None:
        raise AssertionError("nothing to stop")

    def _output(self, spec: JobSpec, files: Mapping[str, bytes]) -> tuple[dict[str, bytes], str]:
        task = spec.task
        if isinstance(task, PrepareTask):
            return _prepared(task, files)
        if isinstance(task, TrainTask):
            return self._trained(spec, task)
        if isinstance(task, PredictTask):
            return _predicted(files, getattr(self, "lost", None))
        assert isinstance(task, InferTask)
        return self._inferred(spec, task)

    def _trained(self, spec: JobSpec, task: TrainTask) -> tuple[dict[str, bytes], str]:
        """With the answers of the model where a part of a learning curve was trained, which nobody else gives."""
        trained, version = _trained(spec)
        if task.part is None or task.inference is None:
            return trained, version
        asked = InferTask(model_names=(task.model_name,), models={}, validation=task.inference.validation)
        answers, answered = self._inferred(spec, asked)
        entries = tuple(
            FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for path, data in sorted(answers.items())
        )
        output = JobOutput(command="infer", data_version=answered, files=entries).to_bytes()
        answers = {f"{names.INFERENCE}/{path}": data for path, data in {**answers, names.OUTPUT: output}.items()}
        return trained | answers, version

    def _inferred(self, spec: JobSpec, task: InferTask) -> tuple[dict[str, bytes], str]:
        (test,) = (channel for channel in spec.channels if channel.name == "test")
        folder = test.prefix.rpartition("/")[0]
        splits = _read(self.store.get(f"{folder}/{names.SPLITS_TABLE}"))
        rows, valid = ([row for row in splits if row["split"] == split] for split in ("test", "valid"))
        predicted = [{"artifact_guid": _guid(row), "label": row["label"]} for row in rows]
        for index, row in enumerate(predicted):
            for model in task.model_names:
                row[f"{model}_prediction"] = row["label"] if index else LABELS[1 - LABELS.index(row["label"])]
                row[f"{model}_probability"] = 0.9
        timings = {"models": {model: {"docs_per_second": 10.0, "latency_ms": 5.0} for model in task.model_names}}
        output = {
            names.PREDICTIONS: _parquet(predicted),
            "documents.parquet": _parquet(_answers(rows, task.model_names)),
            **({names.VALIDATION: _parquet(_answers(valid, task.model_names))} if task.validation else {}),
            "timings.json": json.dumps(timings).encode(),
        }
        return output, digest(predicted)


def _answers(rows: list[dict[str, Any]], models: Sequence[str]) -> list[dict[str, Any]]:
    """All probabilities: those of documents are right, those of units are what they are called."""
    probabilities = [
        said_of_unit(row["artifact_guid"], row["unit"])
        if row.get("unit")
        else [0.9 if label == row["label"] else 0.1 for label in LABELS]
        for row in rows
    ]
    return [
        {"artifact_guid": _guid(row), "label": row["label"]} | {f"{model}_probabilities": said for model in models}
        for row, said in zip(rows, probabilities, strict=True)
    ]


def _guid(row: Mapping[str, Any]) -> str:
    return document_guid(row["artifact_guid"], row.get("unit"))


def said_of_unit(artifact: str, unit: str) -> list[float]:
    """The probabilities that a job gives a unit, in float32's digits."""
    share = hashlib.sha256(f"{artifact}/{unit}".encode()).digest()[0] / 256
    return [share, 1 - share]


def _predicted(files: Mapping[str, bytes], lost: str | None) -> tuple[dict[str, bytes], str]:
    """Every document is a letter."""
    guids = sorted({row["artifact_guid"] for row in _read(files[names.ARTIFACTS_TABLE])} - {lost})
    row = {"prediction": "letter", "probability": 0.9, "probabilities": [0.1, 0.9], "tokens": 7}
    rows = [{"artifact_guid": guid, "accepted": None, "error": None} | row for guid in guids]
    for answer in rows:
        artifact, unit = split_guid(answer["artifact_guid"])
        if unit:
            said = said_of_unit(artifact, unit)
            answer |= {"prediction": LABELS[said.index(max(said))], "probability": max(said), "probabilities": said}
    return {f"{names.PREDICTION_PARTS}/0.parquet": _parquet(rows)}, digest(guids)


def _prepared(task: PrepareTask, files: Mapping[str, bytes]) -> tuple[dict[str, bytes], str]:
    if task.phase == "shard":
        return {"shards/0/rows.arrow": b"rows"}, digest("shard")
    artifacts = _read(files[names.ARTIFACTS_TABLE])
    earlier = _read(files[names.PREVIOUS_SPLITS]) if names.PREVIOUS_SPLITS in files else []
    kept = {row["artifact_guid"]: row["split"] for row in earlier}
    rows = []
    position_of = {
        guid: position for position, guid in enumerate(by_artifact(row["artifact_guid"] for row in artifacts))
    }
    for row in artifacts:
        artifact, unit = split_guid(row["artifact_guid"])
        split = kept.get(artifact, ("train", "train", "valid", "test")[position_of[artifact] // 2 % 4])
        rows.append(
            {
                "artifact_guid": artifact,
                **({"unit": unit} if unit else {}),
                "label": row["label"],
                "split": split,
                "group": row["group"],
                "near_duplicate_group": None,
            }
        )
    counts = {
        split: {label: sum(r["split"] == split and r["label"] == label for r in rows) for label in LABELS}
        for split in names.SPLITS
    }
    metadata = {
        "documents": {split: sum(by_label.values()) for split, by_label in counts.items()},
        "labels": counts,
        "dropped": {"failed": {}},
        "near_duplicates": {"groups": 0},
        "models": {model: {"token_lengths": None, "truncated_share": 0.25} for model in task.model_names},
        "features": {"ids": "list"},
        "bytes_on_disk": 12,
        "documents_per_second": 99.0,
    }
    schema = pa.schema([(name, pa.string()) for name in rows[0]])
    output = {
        **{
            f"{split}/data.arrow": json.dumps([r for r in rows if r["split"] == split]).encode()
            for split in names.SPLITS
        },
        names.LABEL2ID: json.dumps({label: index for index, label in enumerate(LABELS)}).encode(),
        names.ID2LABEL: json.dumps({str(index): label for index, label in enumerate(LABELS)}).encode(),
        names.SPLIT_METADATA: json.dumps(metadata).encode(),
        names.SPLITS_TABLE: _parquet(rows, schema),
    }
    return output, digest([rows, task.own_hyperparameters])


def _trained(spec: JobSpec) -> tuple[dict[str, bytes], str]:
    weights = digest([spec.model, spec.hyperparameters]).encode()
    export = {"cases": ["batch 1"], "tolerance": 1e-4, "fixed_shape": None}
    card = {
        "epochs": 2,
        "best_epoch": 2,
        "scores": {"valid_f1": 0.8 if spec.piece != "seed-14" else 0.9, "valid_accuracy": 0.8, "valid_loss": 0.4},
        "parameters": {"total": 10, "trainable": 10},
        "export": {"tolerance": 1e-4, "fixed_shape": None, "relative_difference": {"batch 1": 1e-6}},
    }
    history = [
        {"epoch": n, "train_loss": 1 / n, "valid_loss": 1.0, "valid_f1": 0.7, "valid_accuracy": 0.7} for n in (1, 2)
    ]
    output = {
        names.TORCHSCRIPT: weights,
        names.WEIGHTS: weights,
        names.HISTORY: json.dumps(history).encode(),
        names.STATISTICS: json.dumps(card).encode(),
        names.CURVES: b"\x89PNG",
        names.EXPORT: json.dumps(export).encode(),
    }
    if spec.kind == "tuning":
        output[names.TRIALS] = b"[]"
    return output, model_version({spec.model or "": weights.decode()}, {spec.model or "": export})


def _parquet(rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    return buffer.getvalue()


def _read(data: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    return rows
