"""What Dagster keeps of runs, made small and true.

In a home of its own databases (SQLite), Dagster gives every run one with all of its tables and indexes: 120 kB of pages that hold next to
nothing, before the run has said a word.
And an event is some 1,500 characters of JSON, which stand in them up to three times, and most of which are the names of Dagster's own fields.
"""

import contextlib
import sqlite3
import time
import zlib
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy

from docml_assets.dagster_internals import (
    EVENT_COLUMNS,
    EventDatabases,
    HomeDatabases,
    forget_unevaluated_checks,
    instance_defaults,
)
from docml_assets.partitions import EXPERIMENT, EXPERIMENT_RUN, partition_key

RUNS = "history/runs"  # below the home: <run id>.db, and an index over all
PAGE_BYTES = 512  # the smallest that SQLite knows
FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
_HEADER = slice(16, 18)  # where a database's page size stands

# What events have in common, for zlib to refer to. What was written with these words can be read with these very words only.
_WORDS = (
    b'{"__class__": "EventLogEntry", "dagster_event": {"__class__": "DagsterEvent", "event_specific_data": {"__class__": "'
    b'AssetMaterializationPlannedData", "AssetCheckEvaluationPlanned", "asset_key": {"__class__": "AssetKey", "path": ["'
    b'"partitions_subset": {"__class__": "DefaultPartitionsSubset", "subset": {"__set__": ["'
    b'"__class__": "StepMaterializationData", "asset_lineage": [], "materialization": {"__class__": "AssetMaterialization", '
    b'"asset_observation": {"__class__": "AssetObservation", "AssetObservationData", "PathMetadataEntryData", "path": "'
    b'"FloatMetadataEntryData", "value": "UrlMetadataEntryData", "url": "MarkdownMetadataEntryData", "md_str": "'
    b'{"__class__": "EventLogEntry", "dagster_event": null, "error_info": null, "level": 20, "message": "'
    b'"__class__": "StepOutputData", "metadata_entries": [{"__class__": "EventMetadataEntry", "description": null, '
    b'"entry_data": {"__class__": "TextMetadataEntryData", "text": "'
    b'"__class__": "AssetCheckEvaluation", "blocking": false, "check_name": "description": "metadata": {"severity": '
    b'{"__enum__": "AssetCheckSeverity.WARN"}, "success": true, "target_materialization_data": {"__class__": '
    b'"AssetCheckEvaluationTargetMaterializationData", "run_id": "storage_id": "timestamp": '
    b'"step_output_handle": {"__class__": "StepOutputHandle", "mapping_key": null, "output_name": "type_check_data": '
    b'{"__class__": "TypeCheckData", "description": null, "label": "metadata_entries": [], "success": true}, "version": null}, '
    b'"partition": "tags": {"dagster/code_version": "1", "dagster/data_version": "dagster/data_version_is_user_provided": "true"'
    b'"event_specific_data": null, "event_type_value": "ASSET_MATERIALIZATION_PLANNED", "ASSET_CHECK_EVALUATION_PLANNED", '
    b'"STEP_OUTPUT", "STEP_SUCCESS", "StepSuccessData", "duration_ms": "STEP_START", "Finished execution of step \\"'
    b'"logging_tags": {"job_name": "run_experiment", "op_name": "resource_fn_name": "None", "resource_name": "None", "run_id": '
    b'"step_key": "message": "run_experiment intends to execute asset check on asset [\\"Started execution of step \\"_checks", '
    b'"pid": null, "pipeline_name": "run_experiment", "solid_handle": {"__class__": "SolidHandle", "name": "parent": null}, '
    b'"step_handle": {"__class__": "StepHandle", "key": "solid_handle": {"__class__": "SolidHandle", "name": "parent": null}}, '
    b'"step_key": "step_kind_value": "COMPUTE"}, "error_info": null, "level": 10, "message": "", "pipeline_name": '
    b'"run_experiment", "run_id": "step_key": null, "timestamp": "user_message": "Yielded output \\"" of type \\"Any\\". '
    b'(Type check passed)."}'
)
_COMPRESSES = "docml_compresses_events"  # set on the dialect of a connection


class CompressedText(sqlalchemy.TypeDecorator[str]):
    """Text that `CompactEvents` writes compressed; what is text in the database is read as it stands."""

    impl = sqlalchemy.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sqlalchemy.Dialect) -> Any:
        """What is written."""
        if value is None or not hasattr(dialect, _COMPRESSES):
            return value
        compressor = zlib.compressobj(zdict=_WORDS)
        return compressor.compress(value.encode()) + compressor.flush()

    def process_result_value(self, value: Any, dialect: sqlalchemy.Dialect) -> str | None:
        """What was written."""
        return zlib.decompressobj(zdict=_WORDS).decompress(value).decode() if isinstance(value, bytes) else value


class CompactEvents(EventDatabases):
    """Dagster's event log in SQLite, which writes events compressed and reads both kinds."""

    def __init__(self, base_dir: str) -> None:
        for column in EVENT_COLUMNS:
            column.type = CompressedText()
        super().__init__(base_dir)

    @contextlib.contextmanager
    def _connect(self, shard: str) -> Iterator[sqlalchemy.Connection]:
        with super()._connect(shard) as connection:
            setattr(connection.dialect, _COMPRESSES, True)
            yield connection


class CompactStorage(HomeDatabases):
    """Dagster's databases of a home, with `CompactEvents`."""

    def __init__(self, base_dir: str, inst_data: Any = None) -> None:
        super().__init__(base_dir, inst_data)
        self._event_log_storage = CompactEvents(str(Path(base_dir) / RUNS))

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Any) -> "CompactStorage":
        """As Dagster makes it from an instance's settings."""
        return cls.from_local(inst_data=inst_data, **config_value)


class CompactInstance(dg.DagsterInstance):
    """Dagster's instance (`instance_class` in dagster.yaml) upon `CompactStorage`, where no other storage is set."""

    @staticmethod
    def config_schema() -> dict[str, Any]:
        """Its own settings in dagster.yaml: none."""
        return {}

    @staticmethod
    def config_defaults(base_dir: str) -> Mapping[str, Any]:
        """What it is made up of, where dagster.yaml names nothing else."""
        return instance_defaults(base_dir, CompactStorage)


def has_compressed_events(home: Path) -> bool:
    """Whether the home has events that only `CompactInstance` can read."""
    index = home / RUNS / "index.db"
    if not index.is_file():
        return False
    with contextlib.closing(sqlite3.connect(index)) as connection, contextlib.suppress(sqlite3.Error):
        found = connection.execute("SELECT 1 FROM event_logs WHERE typeof(event) = 'blob' LIMIT 1").fetchone()
        return found is not None
    return False


def shrink(database: Path) -> int:
    """Rewrite the database of an ended run with small pages; how many bytes were saved, 0 where it is in use, small already, or not there."""
    try:
        with database.open("rb") as stream:
            if int.from_bytes(stream.read(_HEADER.stop)[_HEADER], "big") <= PAGE_BYTES:
                return 0
        before = database.stat().st_size
        with contextlib.closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
            # Pages keep their size in WAL mode, in which Dagster has it.
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("VACUUM")
            connection.execute("PRAGMA journal_mode = WAL")
    except (OSError, sqlite3.Error):  # it serves as it is
        return 0
    return before - database.stat().st_size


def shrink_ended_runs(instance: dg.DagsterInstance, home: Path, within_seconds: float | None = None) -> int:
    """Shrink the databases of all ended runs, or of those that were written to within so many seconds; how many bytes were saved."""
    oldest = time.time() - within_seconds if within_seconds is not None else 0.0
    recent = {path.stem: path for path in (home / RUNS).glob("*.db") if _modified(path) >= oldest}
    if not recent:
        return 0
    ended = instance.get_runs(dg.RunsFilter(run_ids=list(recent), statuses=list(FINISHED)))
    return sum(shrink(recent[run.run_id]) for run in ended)


def forget_unevaluated(instance: dg.DagsterInstance, within_seconds: float | None = None) -> None:
    """Have checks that ended runs planned and never evaluated count as not evaluated: of all runs, or of those that ended within so many
    seconds. Their runs say why they ended."""
    oldest = datetime.now(UTC) - timedelta(seconds=within_seconds) if within_seconds is not None else None
    forget_unevaluated_checks(instance, instance.get_runs(dg.RunsFilter(statuses=list(FINISHED), updated_after=oldest)))


def forget_removed(instance: dg.DagsterInstance, known: Mapping[str, Collection[int]], *, dry_run: bool) -> list[str]:
    """Delete the partition keys of experiments and runs that are none any more; `known`: experiment -> its runs. Which keys these are.

    Their events stay, and a key comes back with the next run that has it.
    """
    pairs = {partition_key(name, number) for name, runs in known.items() for number in runs}
    gone = []
    for definition, keys in ((EXPERIMENT, set(known)), (EXPERIMENT_RUN, pairs)):
        for key in sorted(set(instance.get_dynamic_partitions(definition)) - keys):
            gone.append(key)
            if not dry_run:
                instance.delete_dynamic_partition(definition, key)
    return gone


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
