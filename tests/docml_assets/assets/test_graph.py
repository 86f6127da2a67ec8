"""The graph by partition: data versions, metadata, lineage, reuse, checks that stop it."""

import re
from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.events import AssetObservationData, StepMaterializationData
from dagster._core.loader import LoadingContextForTest

from docml_assets.partitions import BACKFILL_TAG, STEPS_TAG
from docml_assets.runs.claims import write_snapshot
from docml_assets.steps.snapshot import existing_claim
from docml_contract.names import RunPlace
from tests.docml_assets.assets.materializing import checks, definitions, failure, materializations, materialize
from tests.docml_assets.world import FakeJobs, World

ASSETS = {
    "experiment_snapshot",
    "reconciled_data",
    "label_counts",
    "encoded_splits",
    "best_torchscript_model",
    "inference_report",
}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def numbers(result: dg.ExecuteInProcessResult) -> list[str]:
    """The names under which Dagster plots something: of materializations, observations and checks."""
    found: list[str] = []
    for event in result.all_events:
        match event.event_specific_data:
            case StepMaterializationData(materialization=said) | AssetObservationData(asset_observation=said):
                metadata = said.metadata
            case dg.AssetCheckEvaluation() as said:
                metadata = said.metadata
            case _:
                continue
        numeric = (dg.IntMetadataValue, dg.FloatMetadataValue)
        found += [name for name, value in metadata.items() if isinstance(value, numeric)]
    return found


def version(materialization: dg.AssetMaterialization) -> str:
    assert materialization.tags is not None
    return materialization.tags["dagster/data_version"]


def test_a_run_materializes_six_assets_and_its_checks_pass(world: World, instance: dg.DagsterInstance) -> None:
    world.write_experiment(model_names="one, two")
    jobs = FakeJobs(world.store)
    result = materialize(world, instance, 1, jobs=jobs)
    assert result.success, failure(result)
    made = materializations(result)
    assert made.keys() == ASSETS
    assert {m.partition for m in made.values()} == {"EXP-1|1"}
    passed = checks(result)
    assert {name for name, (ok, _) in passed.items() if not ok} == set()
    assert passed.keys() >= {"files_complete", "enough_labels", "no_leakage", "traced_equals_eager", "report_adds_up"}
    assert "production_unchanged" not in passed
    report = made["inference_report"].metadata
    assert isinstance(report["EXP-1: macro-F1 (one)"], dg.FloatMetadataValue)
    assert report["test documents"].value == "6"
    assert made["encoded_splits"].metadata["EXP-1: cost in USD"].value == 0.5
    for asset, name in (("label_counts", "documents by label"), ("encoded_splits", "documents by label and split")):
        assert str(made[asset].metadata[name].value).startswith(f"![{name}](/stored/EXP-1/run_1/")
    assert str(made["encoded_splits"].metadata["jobs"].value).endswith(": launched, 1.0 s, 1.0 s billed, $0.50")
    assert numbers(result)
    assert [name for name in numbers(result) if not re.match("EXP-1( run 1)?: ", name)] == [], (
        "Dagster's plots mix them"
    )

    again = materialize(world, instance, 1, jobs=jobs)
    assert again.success
    assert len(jobs.ran) == 4
    assert {name: version(m) for name, m in materializations(again).items()} == {
        name: version(m) for name, m in made.items()
    }
    # Somebody who may write to the store changes the code everywhere it lies there.
    claim = existing_claim(world.store, RunPlace("EXP-1", 1))
    swapped = claim.model_copy(update={"functions_source": claim.functions_source + "\n# swapped"})
    world.store.delete([f"{claim.place.snapshot}/MANIFEST.json", f"{claim.place.snapshot}/user_defined_funcs.py"])
    world.store.put(claim.place.claim, swapped.to_bytes())
    write_snapshot(world.store, swapped)
    attacked = materialize(world, instance, 1, jobs=jobs, assets=["best_torchscript_model"])
    assert "another hash in Dagster's event log" in failure(attacked)
    assert len(jobs.ran) == 4


def test_the_next_run_reuses_what_did_not_change(world: World, instance: dg.DagsterInstance) -> None:
    world.write_experiment(hyperparameters={"epochs": 1})
    first = materializations(materialize(world, instance, 1))
    world.write_experiment(hyperparameters={"epochs": 2}, run_num=2)
    jobs = FakeJobs(world.store)
    second = materializations(materialize(world, instance, 2, jobs=jobs))
    assert jobs.ran == ["training small", "inference"]
    for asset in ("reconciled_data", "label_counts", "encoded_splits"):
        assert version(second[asset]) == version(first[asset])
    assert version(second["best_torchscript_model"]) != version(first["best_torchscript_model"])
    assert second["encoded_splits"].metadata["reused_from"].value == "run 1"


def test_executing_a_run_again_says_first_that_its_folder_has_changed(
    world: World, instance: dg.DagsterInstance
) -> None:
    def first_said(run_id: str) -> str:
        logs = [entry for entry in instance.all_logs(run_id) if entry.dagster_event is None]
        return logs[0].user_message if logs else ""

    world.write_experiment()
    assets = ["experiment_snapshot", "reconciled_data"]
    assert "changed" not in first_said(materialize(world, instance, 1, assets=assets).run_id)
    world.write_experiment(hyperparameters={"epochs": 2}, split_seed=4)
    for selected in (assets, assets[1:]):
        said = first_said(materialize(world, instance, 1, assets=selected).run_id)
        assert (
            "its folder has changed since: SPLIT_SEED, [hyperparameters] epochs. To use what is new take run 2" in said
        )


def test_steps_that_are_not_performed_leave_no_materialization_unless_something_fits(
    world: World, instance: dg.DagsterInstance
) -> None:
    world.write_experiment()
    result = materialize(world, instance, 1, tags={STEPS_TAG: "reconciliation,preparation"})
    assert result.success, failure(result)
    assert materializations(result).keys() == ASSETS - {"best_torchscript_model", "inference_report"}


def test_only_run_num_and_the_next_free_number_may_come_into_being_from_the_ui(
    world: World, instance: dg.DagsterInstance
) -> None:
    world.write_experiment()
    jobs = FakeJobs(world.store)
    result = materialize(world, instance, 7, jobs=jobs)
    assert not result.success
    assert failure(result).startswith(
        "EXP-1 run 7 is not claimed: expected a claimed run, the experiment's RUN_NUM (1) or the next free number (1)."
    )
    assert not materializations(result)
    assert not jobs.ran


@pytest.mark.parametrize("assets", [None, ["encoded_splits", "best_torchscript_model"]])
def test_a_backfill_skips_partitions_that_are_no_run(
    world: World, instance: dg.DagsterInstance, assets: list[str] | None
) -> None:
    world.write_experiment()
    jobs = FakeJobs(world.store)
    for experiment, run in (("EXP-1", 7), ("EXP-removed", 1)):
        result = materialize(
            world, instance, run, jobs=jobs, experiment=experiment, assets=assets, tags={BACKFILL_TAG: "all"}
        )
        assert result.success, failure(result)
        assert not materializations(result)
        assert not checks(result)
        logs = [entry.user_message for entry in instance.all_logs(result.run_id) if entry.dagster_event is None]
        (line,) = [
            text for text in logs if not text.startswith("Skipping step")
        ]  # which Dagster says of what comes after
        assert line.startswith(
            f"Skipped, since a backfill executes claimed runs and RUN_NUM only: {experiment} run {run}"
        )
    assert not jobs.ran
    assert world.store.list_folders() == []


def test_leaking_splits_stop_the_run_before_training(world: World, instance: dg.DagsterInstance) -> None:
    world.write_experiment()

    class Leaking(FakeJobs):
        def _output(self, spec, files):  # type: ignore[no-untyped-def]
            output, version = super()._output(spec, files)
            if spec.step == "preparation":
                from docml_contract.names import SPLITS_TABLE
                from tests.docml_assets.world import _parquet, _read

                rows = _read(output[SPLITS_TABLE])
                for row in rows:
                    row["near_duplicate_group"] = "same"
                output[SPLITS_TABLE] = _parquet(rows)
            return output, version

    jobs = Leaking(world.store)
    result = materialize(world, instance, 1, jobs=jobs)
    assert not result.success
    assert checks(result)["no_leakage"] == (False, dg.AssetCheckSeverity.ERROR)
    assert jobs.ran == ["preparation"]
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert failed.step_key == "encoded_splits_checks"
    assert failed.step_failure_data.error is not None
    assert failed.step_failure_data.error.message.startswith(
        "twice: 0 documents; in several splits: 0 groups of SPLIT_BY and 1 group of near-duplicates"
    )
    assert failed.step_failure_data.error.stack == []


def test_production_that_cannot_be_read_is_a_warning(world: World, instance: dg.DagsterInstance) -> None:
    world.write_experiment()
    assert materialize(world, instance, 1, assets=["experiment_snapshot", "reconciled_data"]).success
    (world.root / "labels.sqlite").unlink()
    assert not unchanged(world, instance)


def test_changed_labels_make_the_partition_stale_and_the_check_warn(world: World, instance: dg.DagsterInstance) -> None:
    world.write_experiment()
    assert materialize(world, instance, 1, assets=["experiment_snapshot", "reconciled_data"]).success
    assert stale(world, instance) == StaleStatus.FRESH
    assert unchanged(world, instance)
    assert stale(world, instance) == StaleStatus.FRESH
    world.add_document("doc-new", "letter")
    assert not unchanged(world, instance)
    assert stale(world, instance) == StaleStatus.STALE


def stale(world: World, instance: dg.DagsterInstance) -> StaleStatus:
    graph = definitions(world).resolve_asset_graph()
    context = LoadingContextForTest(instance)
    resolver = CachingStaleStatusResolver(instance, graph, context)
    return resolver.get_status(dg.AssetKey("reconciled_data"), "EXP-1|1")


def unchanged(world: World, instance: dg.DagsterInstance) -> bool:
    """What production_unchanged says when the finished asset is materialized in the UI, which executes all its checks."""
    everything = definitions(world)
    job = dg.Definitions(
        assets=everything.assets,
        asset_checks=everything.asset_checks,
        jobs=[dg.define_asset_job("look", selection=dg.AssetSelection.assets("reconciled_data"))],
        resources=everything.resources,
        executor=dg.in_process_executor,
    ).resolve_job_def("look")
    result = job.execute_in_process(instance=instance, partition_key="EXP-1|1", raise_on_error=False)
    assert result.success, failure(result)
    passed, severity = checks(result)["production_unchanged"]
    assert severity == dg.AssetCheckSeverity.WARN
    return passed
