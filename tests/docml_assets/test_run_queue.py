"""What a backfill has nothing to do for ends at once; everything else is queued."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from docml_assets.dagster_internals import checks_of, end_without_process
from docml_assets.definitions import defs
from docml_assets.partitions import BACKFILL_TAG, PARTITION_TAG
from docml_assets.run_queue import AlreadyFinished, RunQueue, look_for_work
from docml_contract.names import RunPlace
from tests.docml_assets.assets.materializing import failure, listed, materialize
from tests.docml_assets.world import World

REPORT = "inference_report"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as found:
        yield found


def backfilled(instance: dg.DagsterInstance, partition: str, *assets: str) -> dg.DagsterRun:
    """A run as a backfill makes it."""
    job = defs.resolve_job_def("run_experiment")
    selected = frozenset(map(dg.AssetKey, assets or ("experiment_snapshot", REPORT)))
    tags = {BACKFILL_TAG: "b", PARTITION_TAG: partition}
    return instance.create_run_for_job(job, tags=tags, asset_selection=selected)


def test_what_is_no_run_here_is_left_to_the_run_itself(world: World, instance: dg.DagsterInstance) -> None:
    world.write_experiment(run_num=2)
    for partition in ("EXP-1|2", "EXP-1|7", "EXP-removed|1"):
        look_for_work(instance, backfilled(instance, partition), world.deployment)
    assert world.store.list_folders() == []


def test_a_finished_run_is_verified_and_told_again_without_a_process(
    world: World, instance: dg.DagsterInstance
) -> None:
    world.write_experiment()
    claim = world.claim(1)
    look_for_work(instance, backfilled(instance, "EXP-1|1"), world.deployment)  # claimed, and not finished
    result = materialize(world, instance, 1)
    assert result.success, failure(result)
    assets = ("experiment_snapshot", REPORT)
    of_report = [
        check for check in checks_of(defs.resolve_job_def("run_experiment")) if check.asset_key.path == [REPORT]
    ]
    passed = [{"SUCCEEDED": ["EXP-1|1"]}] * len(of_report)
    assert [listed(instance, check) for check in of_report] == passed
    run = backfilled(instance, "EXP-1|1")
    with pytest.raises(AlreadyFinished, match="verified") as found:
        look_for_work(instance, run, world.deployment)
    ended = end_without_process(instance, run, str(found.value), found.value.made, found.value.checks)
    assert ended.status == dg.DagsterRunStatus.SUCCESS
    assert [listed(instance, check) for check in of_report] == passed, "found of what was told again, too"
    with pytest.raises(AlreadyFinished):
        look_for_work(instance, backfilled(instance, "EXP-1|1"), world.deployment)
    versions = []
    for asset in assets:
        again, first = instance.fetch_materializations(dg.AssetKey(asset), limit=2).records
        assert (again.run_id, first.run_id) == (run.run_id, result.run_id)
        assert again.partition_key == "EXP-1|1"
        versions.append({r.asset_materialization.tags["dagster/data_version"] for r in (again, first)})  # type: ignore[union-attr, index]
    assert all(len(each) == 1 for each in versions)
    report = f"{RunPlace(claim.experiment, 1).inference}/report.json"
    world.store.put(report, b"{}")
    with pytest.raises(Exception, match="bytes, expected"):
        look_for_work(instance, run, world.deployment)  # so that it is queued, and fails with that


def test_documents_of_production_may_be_new(world: World, instance: dg.DagsterInstance) -> None:
    world.write_experiment(predict_query="SELECT artifact_guid FROM labels")
    world.claim(1)
    result = materialize(world, instance, 1)
    assert result.success, failure(result)
    look_for_work(instance, backfilled(instance, "EXP-1|1", "classified_documents"), world.deployment)
    with pytest.raises(AlreadyFinished):
        look_for_work(instance, backfilled(instance, "EXP-1|1"), world.deployment)


def test_homes_have_it(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "dagster.yaml").write_text((root / "dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert isinstance(instance.run_coordinator, RunQueue)
        assert instance.get_concurrency_config().run_queue_config is not None
