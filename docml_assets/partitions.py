"""What a Dagster run belongs to, its partition of experiment × run, and what it carries, its tags."""

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from docml_assets.errors import DocmlError
from docml_assets.experiment.settings.settings import Settings
from docml_contract.names import STEPS, RunPlace, check_experiment_name

EXPERIMENT = "experiment"
RUN = "run"
RUN_KEY = re.compile(r"[1-9][0-9]{0,5}")

experiments = dg.DynamicPartitionsDefinition(name=EXPERIMENT)
runs = dg.DynamicPartitionsDefinition(name=RUN)
experiment_runs = dg.MultiPartitionsDefinition({EXPERIMENT: experiments, RUN: runs})

with warnings.catch_warnings():
    warnings.simplefilter("ignore", dg.BetaWarning)
    # From assets partitioned by experiment alone to those partitioned by experiment and run.
    by_experiment = dg.MultiToSingleDimensionPartitionMapping(EXPERIMENT)


class BadPartition(DocmlError):
    """A partition key that no run can have."""


def partition_key(experiment: str, run: int) -> dg.MultiPartitionKey:
    """The key of a run. BadName if the experiment's name is not allowed (Dagster would accept a `|` and lose the partition)."""
    place = RunPlace(experiment, run)
    return dg.MultiPartitionKey({EXPERIMENT: place.experiment, RUN: str(place.number)})


def run_place(key: str) -> RunPlace:
    """The run of a partition key as the UI or a tag gives it; BadPartition if it is none."""
    experiment, separator, run = key.partition("|")
    if not separator or not RUN_KEY.fullmatch(run):
        raise BadPartition(
            f"partition {key!r}: expected <experiment>|<run> with a run number such as 1 or 12 "
            "(no leading zero); delete the wrong partition key and add the right one"
        )
    check_experiment_name(experiment)
    return RunPlace(experiment, int(run))


def register(instance: dg.DagsterInstance, experiment: str, run: int) -> dg.MultiPartitionKey:
    """Add both keys of a run to the instance (adding a key again does nothing) and return the partition key."""
    key = partition_key(experiment, run)
    instance.add_dynamic_partitions(EXPERIMENT, [experiment])
    instance.add_dynamic_partitions(RUN, [str(run)])
    return key


def registration_requests(places: Iterable[RunPlace]) -> list[dg.AddDynamicPartitionsRequest]:
    """What a sensor returns to register runs: one request a dimension, each key once, or Dagster refuses the whole tick."""
    keys = [partition_key(place.experiment, place.number).keys_by_dimension for place in places]
    if not keys:
        return []
    return [
        definition.build_add_request(sorted({key[dimension] for key in keys}))
        for dimension, definition in ((EXPERIMENT, experiments), (RUN, runs))
    ]


# The steps that the run performs, others are reused (absent: whatever is selected).
STEPS_TAG = "docml/steps"
# The settings that do not freeze, as the experiment folder had them.
OPERATION_TAG = "docml/operation"
# The set of documents that it classifies.
DOCUMENTS_TAG = "docml/documents"
# What started the run.
TRIGGER_TAG = "docml/trigger"
# Dagster's own, on every run of a backfill.
BACKFILL_TAG = "dagster/backfill"
# The process that executes it: a `resources.processes.Process` as text.
PROCESS_TAG = "docml/process"

Tags = Mapping[str, str]


def run_tags(steps: frozenset[str], settings: Settings, trigger: Mapping[str, Any]) -> dict[str, str]:
    """The tags by which the assets know what a run is to do."""
    return {
        STEPS_TAG: ",".join(step for step in STEPS if step in steps),
        **operation_tag(settings),
        TRIGGER_TAG: json.dumps(trigger, sort_keys=True),
    }


def operation_tag(settings: Settings) -> dict[str, str]:
    """The tag with the settings that do not freeze."""
    return {OPERATION_TAG: json.dumps(settings.operational(), sort_keys=True)}


def steps_of(tags: Tags) -> frozenset[str] | None:
    """The steps that a run performs; None: whatever is selected. ValueError if the tag names unknown ones."""
    tag = tags.get(STEPS_TAG)
    if tag is None:
        return None
    steps = frozenset(filter(None, tag.split(",")))
    unknown = sorted(steps - set(STEPS))
    if unknown:
        raise ValueError(
            f"run tag {STEPS_TAG}={tag!r}: unknown {', '.join(unknown)}; expected some of {', '.join(STEPS)}"
        )
    return steps


def operation_of(tags: Tags) -> dict[str, Any] | None:
    """The settings that do not freeze, as the experiment folder had them; None where the run carries none."""
    text = tags.get(OPERATION_TAG)
    return json.loads(text) if text else None


def trigger_of(tags: Tags, run_id: str) -> dict[str, Any]:
    """What started a run, for its claim; without a tag someone did it in the UI."""
    text = tags.get(TRIGGER_TAG)
    return json.loads(text) if text else {"kind": "ui", "dagster_run_id": run_id}
