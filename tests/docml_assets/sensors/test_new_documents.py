"""new_documents_sensor: what is new is classified with the champion, once."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from docml_assets.partitions import operation_of
from docml_assets.runs.champion import promote
from docml_assets.sensors.new_documents import ATTEMPTS, NAME
from docml_assets.steps.prediction import run_prediction
from tests.docml_assets.assets.materializing import definitions, materializations
from tests.docml_assets.sensors.ticking import Daemon
from tests.docml_assets.steps.test_inference import whole
from tests.docml_assets.world import FakeJobs, World


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as found:
        yield found


def test_new_documents_are_classified_once_with_the_champion(world: World, instance: dg.DagsterInstance) -> None:
    world.write_experiment(predict_query="SELECT artifact_guid FROM labels")
    daemon = Daemon(NAME, instance, world.environment)
    assert daemon.ticks(2) == []
    work = world.work(world.claim(1), FakeJobs(world.store))
    whole(work)
    assert daemon.ticks(2) == []  # no champion yet
    promote(world.store, "EXP-1", 1, "small", by="ann", force=None)
    assert daemon.tick() == []  # documents may still arrive
    assert daemon.tick() == ["EXP-1|1"]
    assert daemon.ticks(2) == []
    run_prediction(work, None, None)
    assert daemon.tick() == []
    assert (daemon.skipped or "").endswith("experiments: 1 as before.")
    world.add_document("doc-99", "letter")
    assert daemon.tick() == []
    assert "EXP-1: new documents; they are classified once they have stood for two ticks" in (daemon.skipped or "")
    world.add_document("doc-98", "letter")
    assert daemon.tick() == []
    assert daemon.tick() == ["EXP-1|1"]


def test_what_failed_is_tried_again_a_few_times_and_then_said(world: World, instance: dg.DagsterInstance) -> None:
    world.write_experiment(predict_query="SELECT artifact_guid FROM labels")
    whole(world.work(world.claim(1), FakeJobs(world.store)))
    promote(world.store, "EXP-1", 1, "small", by="ann", force=None)
    world.write_experiment(predict_query="SELECT artifact_guid FROM labels", inference_instance_count=2)
    daemon = Daemon(NAME, instance, world.environment)
    assert daemon.ticks(2) == ["EXP-1|1"]
    for _ in range(ATTEMPTS - 1):
        (run, *_) = instance.get_runs()
        assert operation_of(run.tags)["inference_instance_count"] == 2  # type: ignore[index]
        assert daemon.tick() == []  # it is under way
        instance.report_run_failed(run)
        assert daemon.tick() == ["EXP-1|1"]
    instance.report_run_failed(instance.get_runs()[0])
    assert daemon.tick() == []
    assert daemon.skipped is not None
    assert "has failed 3 times and is given up: look in Dagster's run list for the reason" in daemon.skipped
    assert daemon.tick() == []
    assert "is given up" in (daemon.skipped or "")
    world.add_document("doc-99", "letter")
    assert daemon.ticks(2) == ["EXP-1|1"]


def test_the_asset_does_what_it_is_asked(world: World, instance: dg.DagsterInstance) -> None:
    world.write_experiment(predict_query="SELECT artifact_guid FROM labels WHERE artifact_guid < 'doc-03'")
    whole(world.work(world.claim(1), FakeJobs(world.store)))
    from docml_assets.partitions import register

    job = definitions(world).resolve_job_def("classify_documents")
    result = job.execute_in_process(instance=instance, partition_key=register(instance, "EXP-1", 1))
    made = materializations(result)["classified_documents"]
    assert made.metadata["documents"].value == "3"
    assert made.metadata["errors"].value == "0"
    assert {check.check_name: check.passed for check in result.get_asset_check_evaluations()} == {"few_errors": True}


def test_every_tick_says_what_is_wrong(world: World, instance: dg.DagsterInstance) -> None:
    world.write_experiment(predict_query="SELECT artifact_guid FROM nowhere")
    whole(world.work(world.claim(1), FakeJobs(world.store)))
    promote(world.store, "EXP-1", 1, "small", by="ann", force=None)
    daemon = Daemon(NAME, instance, world.environment)
    for _ in range(2):
        assert daemon.tick() == []
        assert "1 is broken.\nEXP-1: not looked at, since " in (daemon.skipped or "")
        assert "nowhere" in (daemon.skipped or "")
