"""The private names of Dagster that docml needs, in one place. Dagster's version is pinned, and a test tells what a new one took away."""

from collections.abc import Iterable, Iterator
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.repository_definition.valid_definitions import SINGLETON_REPOSITORY_NAME
from dagster._core.errors import DagsterUserCodeProcessError
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.events import StepMaterializationData
from dagster._core.execution.api import execute_run_iterator
from dagster._core.execution.plan.objects import ErrorSource
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster_shared.error import SerializableErrorInfo


class ExplainedFailure(dg.Failure, DagsterUserCodeProcessError):
    """A `dagster.Failure` whose sentence is all that the run's log shows: no class name before it, no stack behind it.

    Dagster takes the recorded error of an exception that crossed a process boundary as it stands; that is how the stack stays out.
    """

    def __init__(self, sentence: str) -> None:
        shown = SerializableErrorInfo(message=sentence, stack=[], cls_name="Failure")
        DagsterUserCodeProcessError.__init__(self, sentence, user_code_process_error_infos=[shown])
        self.description = sentence
        self.metadata = {}
        self.allow_retries = False


def job_origin(module: str, location: str, job: str) -> RemoteJobOrigin:
    """A job's place in workspace.yaml: without it the UI could not re-execute a run."""
    place = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name=module), location_name=location)
    return RemoteJobOrigin(RemoteRepositoryOrigin(place, SINGLETON_REPOSITORY_NAME), job)


def without_checks(job: dg.JobDefinition, assets: Iterable[str]) -> dg.JobDefinition:
    """The job with these assets, and none of their checks."""
    return job.get_subset(
        asset_selection=frozenset(dg.AssetKey(asset) for asset in assets), asset_check_selection=frozenset()
    )


def checks_of(job: dg.JobDefinition) -> list[dg.AssetCheckKey]:
    """The checks that a job evaluates."""
    return sorted(job.asset_layer.asset_graph.asset_check_keys)


def execute_run(job: dg.JobDefinition, run: dg.DagsterRun, instance: dg.DagsterInstance) -> Iterator[dg.DagsterEvent]:
    """Execute a run that exists, in this process; its events as they happen."""
    return execute_run_iterator(InMemoryJob(job), run, instance)


def end_without_process(
    instance: dg.DagsterInstance, run: dg.DagsterRun, reason: str, made: Iterable[dg.AssetMaterialization] = ()
) -> dg.DagsterRun:
    """Mark a run that has not begun as succeeded, with the materializations that it would have made; `reason` is all else its log says."""
    for materialization in made:
        data = StepMaterializationData(materialization)
        kind = dg.DagsterEventType.ASSET_MATERIALIZATION.value
        instance.report_dagster_event(dg.DagsterEvent(kind, run.job_name, event_specific_data=data), run.run_id)
    ended = dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, run.job_name, message=reason)
    instance.report_dagster_event(ended, run.run_id)
    return instance.get_run_by_id(run.run_id) or run


def is_interrupt(event: dg.DagsterEvent) -> bool:
    """Whether a step failed because it was interrupted."""
    return event.step_failure_data.error_source == ErrorSource.INTERRUPT


def last_materialization(
    instance: dg.DagsterInstance, asset: str | dg.AssetKey, partition: str
) -> dg.AssetMaterialization | None:
    """The last materialization of a partition; None where this instance has none."""
    key = dg.AssetKey(asset) if isinstance(asset, str) else asset
    found = instance.fetch_materializations(dg.AssetRecordsFilter(key, asset_partitions=[partition]), limit=1)
    return found.records[0].asset_materialization if found.records else None


def recorded_version(instance: dg.DagsterInstance, asset: str, partition: str) -> str | None:
    """The data version of the last materialization of a partition; None where this instance has none."""
    made = last_materialization(instance, asset, partition)
    return (made.tags or {}).get(DATA_VERSION_TAG) if made is not None else None


def is_evaluated(instance: dg.DagsterInstance, check: dg.AssetCheckKey, partition: str) -> bool:
    """Whether the last execution of a partition's check came to a finding."""
    found = instance.event_log_storage.get_asset_check_execution_history(
        check, limit=1, partition_filter=PartitionKeyFilter(key=partition)
    )
    return bool(found) and found[0].evaluation is not None


def check_history(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, partition: str, limit: int = 100
) -> list[str | None]:
    """The runs of a check's newest evaluations of a partition; None where no run made it."""
    found = instance.event_log_storage.get_asset_check_execution_history(
        check, limit=limit, partition_filter=PartitionKeyFilter(key=partition)
    )
    return [record.run_id or None for record in found]


def have_dev_start(module: str, word: str) -> None:
    """Have `dagster dev`, in this process, start `python -m MODULE WORD …` for its webserver."""
    from dagster._cli import dev

    start = dev.open_ipc_subprocess  # type: ignore[attr-defined]

    def start_ours(command: list[str], **more: Any) -> Any:
        if command[1:3] == ["-m", "dagster_webserver"]:
            command = [*command[:2], module, word, *command[3:]]
        return start(command, **more)

    dev.open_ipc_subprocess = start_ours  # type: ignore[attr-defined, assignment]
