"""The private names of Dagster that docml needs, in one place. Dagster's version is pinned, and a test tells what a new one took away."""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import dagster as dg
import yaml
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.repository_definition.valid_definitions import SINGLETON_REPOSITORY_NAME
from dagster._core.errors import DagsterExecutionInterruptedError, DagsterUserCodeProcessError
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.events import StepMaterializationData
from dagster._core.execution.api import execute_run_iterator
from dagster._core.execution.plan.objects import ErrorSource
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.asset_check_execution_record import (
    COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES,
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from dagster._core.storage.sql import create_engine
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._serdes import ConfigurableClassData, serialize_value
from dagster_shared.error import SerializableErrorInfo
from dagster_shared.record import replace

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

# Dagster's own databases in a home: of events alone, and of everything.
EventDatabases = sqlite_event_log.SqliteEventLogStorage
HomeDatabases = DagsterSqliteStorage
# The columns in which an event stands as JSON: every one of a run in the run's own database, those of assets and checks in the index too.
EVENT_COLUMNS = (SqlEventLogStorageTable.c.event, AssetCheckExecutionsTable.c.evaluation_event)


def instance_defaults(base_dir: str, storage: type[HomeDatabases]) -> Mapping[str, Any]:
    """What makes up an instance whose dagster.yaml names nothing else, with a storage of ours."""
    place = yaml.safe_dump({"base_dir": base_dir})
    return {
        **InstanceRef.config_defaults(base_dir),
        "storage": ConfigurableClassData(storage.__module__, storage.__name__, place),
    }


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


def keep_engines() -> None:
    """Have this process keep its SQLAlchemy engines, as they are meant to be: Dagster makes one for every statement on a home's SQLite
    files, some 290 in a run that makes nothing anew, which is a tenth of its time."""
    for storage in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
        storage.create_engine = _kept_engine  # type: ignore[attr-defined]
    logging.getLogger(_POOL).addFilter(_no_interrupt)


_POOL = "sqlalchemy.pool.impl.NullPool"


def _no_interrupt(record: logging.LogRecord) -> bool:
    """Drop the traceback that SQLAlchemy prints of an interrupt that meets it while it closes a connection; the interrupt goes on."""
    return not (record.exc_info and isinstance(record.exc_info[1], DagsterExecutionInterruptedError))


def _kept_engine(url: str, *, poolclass: type, connect_args: Mapping[str, Any] | None = None) -> "Engine":
    return _engine(url, poolclass, tuple((connect_args or {}).items()))


@lru_cache(maxsize=32)  # every run has a database of its own
def _engine(url: str, poolclass: type, connect_arguments: tuple[tuple[str, Any], ...]) -> "Engine":
    return create_engine(url, poolclass=poolclass, connect_args=dict(connect_arguments))


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
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    reason: str,
    made: Collection[dg.AssetMaterialization] = (),
    checks: Collection[dg.AssetCheckKey] = (),
) -> dg.DagsterRun:
    """Mark a run that has not begun as succeeded, with the materializations that it would have made, of which `checks` would find the same
    again; `reason` is all else its log says."""
    for materialization in made:
        data = StepMaterializationData(materialization)
        kind = dg.DagsterEventType.ASSET_MATERIALIZATION.value
        instance.report_dagster_event(dg.DagsterEvent(kind, run.job_name, event_specific_data=data), run.run_id)
    for partition in {each.partition for each in made if each.partition}:
        carry_findings(instance, checks, partition)
    ended = dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, run.job_name, message=reason)
    instance.report_dagster_event(ended, run.run_id)
    forget_unevaluated_checks(instance, [run])
    return instance.get_run_by_id(run.run_id) or run


def carry_findings(instance: dg.DagsterInstance, checks: Collection[dg.AssetCheckKey], partition: str) -> None:
    """Have the last findings of checks count for what was materialized last, which told the same data again: Dagster takes a finding for void
    once its asset is materialized anew."""
    targets, found = _targets(instance, checks, partition), _last_evaluations(instance, checks, partition)
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        for record in found.values():
            target, entry = targets[record.key.asset_key], record.event
            if target is None or entry is None or entry.dagster_event is None:
                continue
            finding = replace(entry.dagster_event.event_specific_data, target_materialization_data=target)
            event = entry.dagster_event._replace(event_specific_data=finding)
            connection.execute(
                AssetCheckExecutionsTable.update()
                .where(AssetCheckExecutionsTable.c.id == record.id)
                .values(
                    evaluation_event=serialize_value(entry._replace(dagster_event=event)),
                    materialization_event_storage_id=target.storage_id,
                )
            )


def forget_unevaluated_checks(instance: dg.DagsterInstance, runs: Iterable[dg.DagsterRun]) -> None:
    """Delete what ended runs planned of checks and never evaluated.

    Dagster's lists of checks call such a check failed (skipped, where the run was canceled) until its partition is evaluated again, however
    often it passes for others.
    """
    by_plan: dict[str, list[str]] = defaultdict(list)  # which most runs have in common
    for run in runs:
        if run.execution_plan_snapshot_id is not None:
            by_plan[run.execution_plan_snapshot_id].append(run.run_id)
    found = AssetCheckExecutionsTable.c
    for plan, run_ids in by_plan.items():
        checks = instance.get_execution_plan_snapshot(plan).asset_check_keys
        with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
            connection.execute(
                AssetCheckExecutionsTable.delete().where(
                    *_are_of(checks),
                    found.run_id.in_(run_ids),
                    found.execution_status == AssetCheckExecutionRecordStatus.PLANNED.value,
                )
            )


def is_interrupt(event: dg.DagsterEvent) -> bool:
    """Whether a step failed because it was interrupted."""
    return event.step_failure_data.error_source == ErrorSource.INTERRUPT


def last_materialization(
    instance: dg.DagsterInstance, asset: str | dg.AssetKey, partition: str
) -> dg.AssetMaterialization | None:
    """The last materialization of a partition; None where this instance has none."""
    found = _last_record(instance, asset, partition)
    return found.asset_materialization if found is not None else None


def _last_record(instance: dg.DagsterInstance, asset: str | dg.AssetKey, partition: str) -> dg.EventLogRecord | None:
    key = dg.AssetKey(asset) if isinstance(asset, str) else asset
    found = instance.fetch_materializations(dg.AssetRecordsFilter(key, asset_partitions=[partition]), limit=1)
    return found.records[0] if found.records else None


def recorded_version(instance: dg.DagsterInstance, asset: str, partition: str) -> str | None:
    """The data version of the last materialization of a partition; None where this instance has none."""
    made = last_materialization(instance, asset, partition)
    return (made.tags or {}).get(DATA_VERSION_TAG) if made is not None else None


def unevaluated_checks(
    instance: dg.DagsterInstance, checks: Collection[dg.AssetCheckKey], partition: str
) -> list[dg.AssetCheckKey]:
    """The checks that have come to no finding of what was last materialized for a partition."""
    targets, found = _targets(instance, checks, partition), _last_evaluations(instance, checks, partition)
    about = {
        check: record.evaluation.target_materialization_data for check, record in found.items() if record.evaluation
    }
    return [check for check in checks if about.get(check) is None or about[check] != targets[check.asset_key]]


def _last_evaluations(
    instance: dg.DagsterInstance, checks: Collection[dg.AssetCheckKey], partition: str
) -> dict[dg.AssetCheckKey, AssetCheckExecutionRecord]:
    """The last execution of each of a partition's checks that came to a finding: in one statement, of which Dagster needs one a check."""
    column = AssetCheckExecutionsTable.c
    wanted = AssetCheckExecutionsTable.select().where(
        *_are_of(checks),
        column.partition == partition,
        column.execution_status.in_([status.value for status in COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES]),
    )
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        rows = connection.execute(wanted).mappings().all()
    known = {(check.asset_key.to_string(), check.name): check for check in checks}
    keyed = ((known.get((row["asset_key"], row["check_name"])), row) for row in sorted(rows, key=itemgetter("id")))
    return {check: AssetCheckExecutionRecord.from_db_row(row, check) for check, row in keyed if check is not None}


def _are_of(checks: Iterable[dg.AssetCheckKey]) -> tuple[Any, Any]:
    """That rows are of these assets and these names of checks: with both, the table's index serves."""
    column = AssetCheckExecutionsTable.c
    keys = list(checks)
    return (
        column.asset_key.in_(sorted({check.asset_key.to_string() for check in keys})),
        column.check_name.in_(sorted({check.name for check in keys})),
    )


def _targets(
    instance: dg.DagsterInstance, checks: Iterable[dg.AssetCheckKey], partition: str
) -> dict[dg.AssetKey, AssetCheckEvaluationTargetMaterializationData | None]:
    """What a finding of each check's asset is about: the partition's last materialization; None where this instance has none."""
    assets = {check.asset_key for check in checks}
    return {asset: _target(instance, asset, partition) for asset in assets}


def _target(
    instance: dg.DagsterInstance, asset: dg.AssetKey, partition: str
) -> AssetCheckEvaluationTargetMaterializationData | None:
    made = _last_record(instance, asset, partition)
    if made is None:
        return None
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=made.storage_id, run_id=made.run_id, timestamp=made.timestamp
    )


def about_last(instance: dg.DagsterInstance, finding: dg.AssetCheckEvaluation) -> dg.AssetCheckEvaluation:
    """A finding of no run, as one of its partition's last materialization: Dagster's list of checks passes over others."""
    target = _target(instance, finding.asset_key, finding.partition or "")
    return replace(finding, target_materialization_data=target)


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
