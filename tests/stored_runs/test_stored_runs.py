"""A store that an earlier version left behind is taken over: the same versions, hashes and names, and no job launched.

`example.tar.xz` holds the folders of three finished runs, `expected.json` what must not change about them; `make_example.py` made
both with commit cbb8c83. They are never made anew for a later version: whoever changes a version, a hash or a name on purpose changes
`expected.json` by hand, and says what becomes of runs that exist.
"""

import hashlib
import io
import json
import sys
import tarfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from docml_assets.cli import main
from docml_assets.partitions import run_tags
from docml_assets.runs.claims import read_claim
from docml_assets.steps.work import flagged_steps
from docml_contract import names
from docml_contract.jobs import JobSpec
from docml_contract.manifests import JobOutput
from resources.jobs.engine.records import JobRecord
from resources.jobs.interface import JobResult, Listener
from tests.docml_assets.assets.materializing import materializations, materialize
from tests.docml_assets.world import FakeJobs, World

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "expected.json").read_text())
EXPERIMENT = "EXP-12-stored"
RUNS = (1, 2, 3)


class Example(World):
    """The unpacked example."""

    def __post_init__(self) -> None:
        with tarfile.open(HERE / "example.tar.xz") as archive:
            archive.extractall(self.root, filter="data")
        self.environment = {
            "DOCML_STORE": str(self.root / "storage"),
            "DOCML_PRODUCTION_FILES": str(self.root / "production"),
            "DOCML_LABELS_URL": f"sqlite:///{self.root / 'labels.sqlite'}",
            "DOCML_EXPERIMENTS": str(self.root / "experiments"),
        }

    @property
    def storage(self) -> Path:
        return self.root / "storage"

    def content(self) -> dict[str, str]:
        """sha256 of every object in the store."""
        paths = [path for path in self.storage.rglob("*") if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def manifests(self) -> dict[str, dict[str, Any]]:
        """What `expected.json` says of manifests, by folder."""
        shown = ("asset", "run", "cache_key", "data_version", "inputs", "code_version")
        found = {}
        for path in self.storage.rglob(names.MANIFEST):
            manifest = json.loads(path.read_text())
            found[path.parent.relative_to(self.storage).as_posix()] = {key: manifest[key] for key in shown}
        return found

    def records(self, run: int) -> list[JobRecord]:
        """The records of a run's jobs, by name."""
        jobs = self.storage / names.RunPlace(EXPERIMENT, run).jobs
        paths = [path for path in sorted(jobs.glob("*.json")) if "." not in path.stem]
        return [JobRecord.from_bytes(path.read_bytes(), str(path)) for path in paths]


class RecordedJobs(FakeJobs):
    """Jobs that hand over what the recorded ones made, and note what they were asked."""

    def __init__(self, example: Example) -> None:
        super().__init__(example.store)
        self.example = example
        self.asked: list[dict[str, Any]] = []

    def run(
        self,
        spec: JobSpec,
        files: Mapping[str, bytes],
        *,
        holder: str,
        listener: Listener,
        cancel: threading.Event | None = None,
    ) -> JobResult:
        (record,) = (
            record
            for record in self.example.records(spec.run)
            if (record.spec.step, record.spec.model, record.status) == (spec.step, spec.model, "Completed")
        )
        folder = names.RunPlace(spec.experiment, spec.run).job_folder(record.name)
        hashes = {name: self._hash(data, self.store.get(f"{folder}/spec/{name}")) for name, data in files.items()}
        asked = spec.model_copy(update={"files": hashes})
        self.asked.append({"name": record.name, "spec_hash": asked.spec_hash})
        key = f"{folder}/output/{names.OUTPUT}"
        return JobResult(
            name=record.name,
            attempt=record.attempt,
            launched=False,
            output_prefix=f"{folder}/output",
            output=JobOutput.from_bytes(self.store.get(key), key),
            started_at=record.started_at,
            ended_at=record.ended_at,
            seconds=record.seconds,
            billable_seconds=None,
            cost_usd=None,
            links={},
        )

    def _hash(self, data: bytes, recorded: bytes) -> str:
        """sha256 of a file; that of the recorded one for an equal table, which another pyarrow writes in other bytes."""
        is_table = data.startswith(b"PAR1")
        same = is_table and pq.read_table(io.BytesIO(data)).equals(pq.read_table(io.BytesIO(recorded)))
        return hashlib.sha256(recorded if same else data).hexdigest()


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Example:
    """The example in a folder of its own, where the command line finds it, beside a fresh Dagster home."""
    example = Example(tmp_path)
    for name, value in example.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    return example


def docml(*arguments: str) -> int:
    """The exit code of a command, run in this process."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


def expected_versions(run: int) -> dict[str, str]:
    """asset -> data version of a run."""
    place = names.RunPlace(EXPERIMENT, run)
    manifests = EXPECTED["manifests"]
    folders = (place.snapshot, place.reconciliation, place.labels, place.preparation, place.inference)
    versions = {manifests[folder]["asset"]: manifests[folder]["data_version"] for folder in folders}
    models = manifests[place.inference]["inputs"]["best_torchscript_model"]
    return {**versions, "best_torchscript_model": models}


def test_finished_runs_are_verified_and_nothing_changes(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    before = example.content()
    for which in (("--run", "1"), ("--run", "2"), ()):  # the folder still says what its RUN_NUM, 3, was claimed with
        assert docml("run", EXPERIMENT, *which) == 0
        assert capsys.readouterr().out.count("verified; no job was launched") == 5
    assert example.content() == before
    home = example.root / "home"
    grown = -size_of(home)
    assert docml("run", EXPERIMENT) == 0
    grown += size_of(home)
    assert grown <= 200_000, "what a home grows by when a run is only verified"
    with dg.DagsterInstance.from_config(str(example.root / "home")) as instance:
        for run in RUNS:
            for asset, version in expected_versions(run).items():
                assert reported_version(instance, asset, run) == version, (run, asset)
        first, last = (said_by(instance, run.run_id) for run in instance.get_runs()[1::-1])
        assert first["checks"]
        assert not last["checks"], "they said the same before"
        assert (
            first["inference_report"]
            > last["inference_report"]
            > {f"{EXPERIMENT}: macro-F1 (narrow)", "summary", "report", "how"}
        )


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def said_by(instance: dg.DagsterInstance, run_id: str) -> dict[str, set[str]]:
    """The names of the checks that a run evaluated, and of the metadata of its materializations by asset."""
    said: dict[str, set[str]] = {"checks": set()}
    for entry in instance.all_logs(run_id):
        event = entry.dagster_event
        if event is not None and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            said["checks"].add(event.asset_check_evaluation_data.check_name)
        if event is not None and event.is_step_materialization and event.asset_key is not None:
            said[event.asset_key.to_user_string()] = set(event.step_materialization_data.materialization.metadata)
    return said


def reported_version(instance: dg.DagsterInstance, asset: str, run: int) -> str:
    key = f"{EXPERIMENT}|{run}"
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[key]), limit=1
    )
    materialization = found.records[0].asset_materialization
    assert materialization is not None
    assert materialization.tags is not None
    return materialization.tags["dagster/data_version"]


def test_the_next_run_takes_the_data_and_trains_under_derived_names(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_trainer = example.root / "python"
    no_trainer.write_text(f'#!/bin/sh\ncase "$*" in *docml_trainer*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    no_trainer.chmod(0o755)
    monkeypatch.setenv("DOCML_WORKER_PYTHON", str(no_trainer))
    assert docml("run", EXPERIMENT, "--next", "--steps", "reconciliation,preparation,training") == 1
    records = example.records(4)
    assert {record.name for record in records} == {
        names.job_name("training", example.store.url, EXPERIMENT, 4, "training", model, 1)
        for model in ("narrow", "wide")
    }
    first, fourth = (names.RunPlace(EXPERIMENT, run) for run in (1, 4))
    now = example.manifests()
    for made, taken in ((first.reconciliation, fourth.reconciliation), (first.preparation, fourth.preparation)):
        assert now[taken]["data_version"] == EXPECTED["manifests"][made]["data_version"]
    data = {EXPECTED["manifests"][first.preparation]["data_version"]}
    assert {record.spec.inputs["encoded_splits"] for record in records} == data


def test_steps_made_again_have_the_same_specs_keys_and_versions(example: Example) -> None:
    for path in example.storage.rglob(names.MANIFEST):
        path.unlink()
    jobs = RecordedJobs(example)
    with dg.DagsterInstance.ephemeral() as instance:
        for run in RUNS:
            claim = read_claim(example.store, EXPERIMENT, run)
            assert claim is not None
            tags = run_tags(flagged_steps(claim.settings), claim.settings, claim.trigger)
            result = materialize(example, instance, run, jobs=jobs, tags=tags, experiment=EXPERIMENT)
            assert result.success
            made = materializations(result)
            versions = {asset: (made[asset].tags or {})["dagster/data_version"] for asset in made}
            assert expected_versions(run).items() <= versions.items()
    recorded = [job for job in EXPECTED["jobs"] if job["status"] == "Completed"]
    assert sorted(jobs.asked, key=lambda job: job["name"]) == sorted(
        ({"name": job["name"], "spec_hash": job["spec_hash"]} for job in recorded), key=lambda job: job["name"]
    )
    made_now = example.manifests()
    deployments = {folder: made_now.pop(folder) for folder in [*made_now] if "/deployment/" in folder}
    assert {manifest["asset"] for manifest in deployments.values()} == {"deployment"}  # unknown to the earlier version
    assert made_now == EXPECTED["manifests"]
    for run, scores in EXPECTED["macro_f1"].items():
        report = json.loads((example.storage / EXPERIMENT / run / "inference" / names.REPORT_JSON).read_text())
        assert {name: model["f1_macro"] for name, model in report["models"].items()} == scores


@pytest.mark.parametrize("job", EXPECTED["jobs"], ids=lambda job: job["name"])
def test_a_job_has_the_name_that_it_had(job: dict[str, Any]) -> None:
    identity = (job["kind"], EXPECTED["store"], EXPERIMENT, job["run"], job["step"], job["model"], job["attempt"])
    assert names.job_name(*identity) == job["name"]
