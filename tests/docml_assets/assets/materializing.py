"""Materializes partitions in this process, over a test's world."""

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.partitions.context import partition_loading_context

from docml_assets.definitions import defs
from docml_assets.partitions import experiment_runs, register
from tests.docml_assets.world import FakeJobs, World


def definitions(world: World, jobs: FakeJobs | None = None) -> dg.Definitions:
    """The project's definitions over the world, with jobs that end at once."""
    return dg.Definitions(
        assets=defs.assets,
        asset_checks=defs.asset_checks,
        jobs=defs.jobs,
        resources={
            **(defs.resources or {}),
            "deployment": world.deployment,
            "jobs": jobs or FakeJobs(world.store),
        },
        executor=defs.executor,
    )


def materialize(
    world: World,
    instance: dg.DagsterInstance,
    run: int,
    *,
    jobs: FakeJobs | None = None,
    assets: Sequence[str] | None = None,
    tags: dict[str, str] | None = None,
    experiment: str = "EXP-1",
) -> dg.ExecuteInProcessResult:
    """Execute run_experiment, or some of its assets, for one partition."""
    key = register(instance, experiment, run)
    job = definitions(world, jobs).resolve_job_def("run_experiment")
    return job.execute_in_process(
        instance=instance,
        partition_key=key,
        asset_selection=[dg.AssetKey(asset) for asset in assets] if assets else None,
        tags=tags,
        raise_on_error=False,
    )


def materializations(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetMaterialization]:
    """By asset."""
    return {
        event.asset_key.to_user_string(): event.step_materialization_data.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }


def checks(result: dg.ExecuteInProcessResult) -> dict[str, tuple[bool, dg.AssetCheckSeverity]]:
    """Whether each check passed, and how grave it is otherwise."""
    return {
        evaluation.check_name: (evaluation.passed, evaluation.severity)
        for evaluation in result.get_asset_check_evaluations()
    }


def listed(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> dict[str, list[str]]:
    """A check's partitions by their status, of which the UI's list of checks shows the worst: Failed with the first that failed, or whose
    run failed before the check; Skipped with the first whose run ended otherwise; Succeeded where there is nothing else."""
    with partition_loading_context(dynamic_partitions_store=instance):
        state = instance.event_log_storage.get_asset_check_state([(check, experiment_runs)])[check]
        found = {status.value: subset.subset_value for status, subset in state.subsets.items()}
        return {status: sorted(subset.get_partition_keys()) for status, subset in found.items() if not subset.is_empty}


def failure(result: dg.ExecuteInProcessResult) -> str:
    """The innermost message of the first step that failed."""
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            while error is not None and error.cause is not None:
                error = error.cause
            return error.message if error else ""
    return ""
