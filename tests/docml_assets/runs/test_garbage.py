"""docml gc removes what nothing needs, and nothing else."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from docml_assets.cli.home import dagster_instance, prepare_dagster_home, served_notes
from docml_assets.cli.runs import gc
from docml_assets.experiment.folder import ExperimentFolder
from docml_assets.partitions import register
from docml_assets.runs.claims import claim_run
from docml_assets.runs.garbage import collect, find_garbage
from docml_contract.manifests import PreparedData
from docml_contract.names import ACTIVE_JOBS, PREPARED, RECONCILED_TABLE, RunPlace
from resources.store import Store
from resources.store.manifests import publish_bytes

EXPERIMENT = "EXP-9-gc"
SCAFFOLD = Path(__file__).parents[3] / "experiments" / "EXP-1-state-of-the-union"


class World:
    """A store with runs that have finished some steps."""

    def __init__(self, root: Path) -> None:
        self.store = Store.open(str(root / "storage"), environment={})
        folder = root / EXPERIMENT
        folder.mkdir()
        for name in ("settings.ini", "user_defined_funcs.py"):
            (folder / name).write_bytes((SCAFFOLD / name).read_bytes())
        self.folder = ExperimentFolder.load(folder)

    def claim(self, number: int) -> RunPlace:
        claim_run(self.store, self.folder, number, trigger={"by": "test"}, request_id=f"request-{number}")
        return RunPlace(EXPERIMENT, number)

    def publish(self, folder: str, asset: str, files: dict[str, bytes], run: int) -> None:
        publish_bytes(
            self.store,
            folder,
            files,
            asset=asset,
            experiment=EXPERIMENT,
            run=run,
            cache_key="0" * 64,
            data_version="1" * 64,
            inputs={},
            code_version="1",
        )

    def document(self, guid: str, version: str) -> str:
        key = f"{EXPERIMENT}/data/reconciled_artifacts/{guid}/{version}/raw_text.json"
        self.store.put(key, b"{}")
        return key

    def reconcile(self, place: RunPlace, keys: list[str]) -> None:
        buffer = io.BytesIO()
        pq.write_table(pa.table({"key": keys}), buffer)
        self.publish(place.reconciliation, "reconciled_data", {RECONCILED_TABLE: buffer.getvalue()}, place.number)

    def prepare(self, place: RunPlace, key: str) -> None:
        folder = f"{place.shared.prepared_data('full_dataset')}/{key}"
        self.publish(folder, "encoded_splits", {"splits.parquet": b"rows"}, place.number)
        note = PreparedData(folder=folder, made_by_run=place.number, data_version="1" * 64)
        self.publish(place.preparation, "encoded_splits", {PREPARED: note.to_bytes()}, place.number)

    def stored(self) -> set[str]:
        return {stored.key for stored in self.store.list()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_only_what_no_run_names_is_garbage(world: World) -> None:
    place = world.claim(1)
    needed = world.document("a", "v1")
    orphan = world.document("a", "v0")
    world.reconcile(place, [needed])
    world.prepare(place, "k1")
    world.publish(f"{EXPERIMENT}/data/prepared_data/full_dataset/k0", "encoded_splits", {"splits.parquet": b"old"}, 1)
    garbage, kept = find_garbage(world.store, EXPERIMENT)
    assert {item.prefix for item in garbage} == {
        orphan.rsplit("/", 1)[0],
        f"{EXPERIMENT}/data/prepared_data/full_dataset/k0",
    }
    assert kept == []
    before = world.stored()
    for item in garbage:
        collect(world.store, item)
    gone = before - world.stored()
    assert all("/k0/" in key or "/v0/" in key for key in gone)
    assert needed in world.stored()


def test_a_run_whose_claim_was_lost_keeps_its_data(world: World) -> None:
    for number in (1, 2):
        place = world.claim(number)
        world.reconcile(place, [world.document("a", f"v{number}")])
        world.prepare(place, f"k{number}")
    world.store.delete([RunPlace(EXPERIMENT, 1).claim])
    assert find_garbage(world.store, EXPERIMENT) == ([], [])


def test_an_unfinished_run_keeps_everything_it_may_use(world: World) -> None:
    first = world.claim(1)
    world.document("a", "v0")
    world.reconcile(first, [world.document("a", "v1")])
    world.prepare(first, "k1")
    world.claim(2)
    garbage, kept = find_garbage(world.store, EXPERIMENT)
    assert garbage == []
    assert [(entry.run, entry.reason) for entry in kept] == [
        (2, "has not finished its reconciliation"),
        (2, "has not finished its preparation"),
    ]


def test_checkpoints_go_when_their_model_is_trained_and_not_before(world: World) -> None:
    place = world.claim(1)
    for model in ("done", "under-way"):
        world.store.put(f"{place.checkpoints(model, 'f' * 64)}/step-10/model.safetensors", b"weights")
    world.publish(place.trained("done", tuned=False), "best_torchscript_model", {"model.pt": b"pt"}, 1)
    garbage, _ = find_garbage(world.store, EXPERIMENT)
    assert [item.prefix for item in garbage] == [f"{place.root}/checkpoints/done"]


def test_encoded_parts_go_when_the_preparation_is_finished_and_not_before(world: World) -> None:
    place = world.claim(1)
    world.store.put(f"{place.encoded_parts}/{'f' * 16}/rows-000000000-000001024.arrow", b"rows")
    assert find_garbage(world.store, EXPERIMENT)[0] == []
    world.prepare(place, "k1")
    assert [item.prefix for item in find_garbage(world.store, EXPERIMENT)[0]] == [place.encoded_parts]


def test_staged_output_goes_after_the_report(world: World) -> None:
    place = world.claim(1)
    world.store.put(f"{place.job_folder('job-1')}/output/model.pt", b"pt")
    assert find_garbage(world.store, EXPERIMENT)[0] == []
    world.publish(place.inference, "inference_report", {"report.json": b"{}"}, 1)
    assert [item.what for item in find_garbage(world.store, EXPERIMENT)[0]] == ["staged output of a job"]


def test_a_run_with_a_job_under_way_keeps_what_its_jobs_left(world: World) -> None:
    place = world.claim(1)
    world.store.put(f"{place.job_folder('job-1')}/output/model.pt", b"pt")
    world.publish(place.inference, "inference_report", {"report.json": b"{}"}, 1)
    world.store.put("_active_jobs/job-1.json", b"{}")
    garbage, kept = find_garbage(world.store, EXPERIMENT)
    assert not garbage
    assert ("what its jobs left", 1, "has a job under way") in {(item.what, item.run, item.reason) for item in kept}
    world.store.delete(["_active_jobs/job-1.json"])
    assert [item.what for item in find_garbage(world.store, EXPERIMENT)[0]] == ["staged output of a job"]


def test_jobs_under_way_are_listed_once_however_many_runs_there_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        world.claim(number)
    listed: list[str] = []
    original = Store.list
    monkeypatch.setattr(Store, "list", lambda self, prefix="": listed.append(prefix) or original(self, prefix))
    find_garbage(world.store, EXPERIMENT)
    assert listed.count(ACTIVE_JOBS) == 1


def test_a_folder_without_runs_is_left_alone(world: World) -> None:
    world.store.put("EXP-foreign/data/reconciled_artifacts/a/v/raw_text.json", b"{}")
    assert find_garbage(world.store, "EXP-foreign") == ([], [])


def test_the_command_shows_first_and_removes_then(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = world.claim(1)
    monkeypatch.setenv("DOCML_EXPERIMENTS", str(tmp_path / "experiments"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    with dagster_instance(prepare_dagster_home()) as instance:
        for name, run in ((EXPERIMENT, 1), (EXPERIMENT, 2), ("EXP-8-removed", 4)):
            register(instance, name, run)
    orphan = world.document("a", "v0")
    world.reconcile(place, [world.document("a", "v1")])
    world.prepare(place, "k1")
    monkeypatch.setenv("DOCML_STORE", str(world.store.local_path))
    copy = tmp_path / "home/deployments/0123456789abcdef"
    copy.mkdir(parents=True)
    (copy / "model.pt").write_bytes(b"weights")
    shown = CliRunner().invoke(gc, ["--dry-run"])
    assert shown.exit_code == 0
    assert f"would remove {copy} (copy of a deployment folder, 7 B)" in shown.output.replace("\n", "")
    assert "would remove EXP-9-gc/data/reconciled_artifacts/a/v0" in shown.output
    assert orphan in world.stored()
    assert "would remove the partition key of EXP-8-removed|4" in shown.output
    removed = CliRunner().invoke(gc, [EXPERIMENT])
    assert removed.exit_code == 0
    assert orphan not in world.stored()
    assert copy.exists()
    assert CliRunner().invoke(gc, []).exit_code == 0
    assert not copy.exists()
    with dagster_instance(prepare_dagster_home()) as instance:
        assert instance.get_dynamic_partitions("experiment") == [EXPERIMENT]
        assert sorted(instance.get_dynamic_partitions("experiment_run")) == [
            f"{EXPERIMENT}|1",
            f"{EXPERIMENT}|2",  # the next one may be asked for
        ]


def test_partition_keys_of_other_stores_of_the_home_stay(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCML_EXPERIMENTS", str(tmp_path / "experiments"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    world.claim(1)
    other = Store.open(str(tmp_path / "other"), environment={})
    other.put("EXP-7-other/run_9/experiment/CLAIM.json", b"{}")
    monkeypatch.setenv("DOCML_STORE", str(tmp_path / "other"))
    home = prepare_dagster_home()
    (note,) = served_notes(home)
    monkeypatch.setenv("DOCML_STORE", str(world.store.local_path))
    with dagster_instance(prepare_dagster_home()) as instance:
        for name, run in ((EXPERIMENT, 1), ("EXP-7-other", 9), ("EXP-8-removed", 4)):
            register(instance, name, run)

        def tidied() -> str:
            result = CliRunner().invoke(gc, [])
            assert result.exit_code == 0
            return result.output.replace("\n", " ")

        told = note.read_text()
        note.write_text(told[:20])
        assert "The partition keys stay: the store or folder that" in tidied()
        assert "EXP-8-removed" in instance.get_dynamic_partitions("experiment")
        note.write_text(told)
        tidied()
        assert sorted(instance.get_dynamic_partitions("experiment")) == ["EXP-7-other", EXPERIMENT]
        assert {f"{EXPERIMENT}|1", "EXP-7-other|9"} == set(instance.get_dynamic_partitions("experiment_run"))
        note.unlink()
        tidied()
        assert instance.get_dynamic_partitions("experiment") == [EXPERIMENT]
