"""A sensor daemon in small: ticks, and what Dagster does with their results, with places where it can be killed."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import dagster as dg
from dagster._core.definitions.dynamic_partitions_request import AddDynamicPartitionsRequest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from docml_assets.deployment import Deployment


def evaluate(
    name: str, instance: dg.DagsterInstance, environment: Mapping[str, str], cursor: str | None
) -> SensorExecutionData:
    """One evaluation, as the code server makes it: Dagster checks the sensor's answer and resolves its run requests."""
    from docml_assets.definitions import defs

    context = dg.build_sensor_context(
        instance=instance,
        instance_ref=instance.get_ref(),
        cursor=cursor,
        definitions=defs,
        resources={"deployment": Deployment(dict(environment))},
    )
    with warnings.catch_warnings():
        # Dagster's own tags of partitions with several dimensions have two slashes.
        warnings.filterwarnings("ignore", "Non-compliant tag keys like", DeprecationWarning)
        return defs.resolve_sensor_def(name).evaluate_tick(context)


def apply(
    name: str, instance: dg.DagsterInstance, result: SensorExecutionData, at: Callable[[str], None] = lambda place: None
) -> list[str]:
    """What the daemon does with a result before it saves the cursor; returns the ids of the runs that it made.

    Dagster makes one run a sensor and run key, whatever became of it. `at` hears where the daemon is.
    """
    at("evaluated")
    for request in result.dynamic_partitions_requests or []:
        assert isinstance(request, AddDynamicPartitionsRequest)
        instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
        at("partition added")
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
    made = []
    for run in result.run_requests or []:
        assert run.run_key
        tags = {"dagster/run_key": run.run_key, "dagster/sensor_name": name}
        if not instance.get_run_ids(dg.RunsFilter(tags=tags), limit=1):
            created = instance.create_run_for_job(
                launched_job, tags={**run.tags, **tags}, status=dg.DagsterRunStatus.NOT_STARTED
            )
            made.append(created.run_id)
        at("run made")
    return made


@dg.job(name="run_experiment")
def launched_job() -> None:
    """Stands for the job whose runs are counted."""


class Daemon:
    """Ticks one sensor and remembers its cursor."""

    def __init__(self, name: str, instance: dg.DagsterInstance, environment: Mapping[str, str]) -> None:
        self.name = name
        self.instance = instance
        self.environment = dict(environment)
        self.cursor: str | None = None
        self.skipped: str | None = None

    def tick(self) -> list[str]:
        """The partitions of the runs that this tick made."""
        result = evaluate(self.name, self.instance, self.environment, self.cursor)
        made = apply(self.name, self.instance, result)
        self.cursor = result.cursor
        self.skipped = result.skip_message
        return [partition_of(self.instance, run_id) for run_id in made]

    def ticks(self, count: int) -> list[str]:
        return [partition for _ in range(count) for partition in self.tick()]


def partition_of(instance: dg.DagsterInstance, run_id: str) -> str:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.tags["dagster/partition"]


def runs_by_partition(instance: dg.DagsterInstance) -> dict[str, int]:
    """How many Dagster runs each partition has."""
    counts: dict[str, int] = {}
    for run in instance.get_runs():
        counts[run.tags["dagster/partition"]] = counts.get(run.tags["dagster/partition"], 0) + 1
    return counts


def environment_of(root: Path, **more: str) -> dict[str, str]:
    return {"DOCML_STORE": str(root / "store"), "DOCML_EXPERIMENTS": str(root / "experiments"), **more}
