"""What a Dagster run belongs to, its partition `<experiment>|<run>`, and what it carries, its tags.

One dimension of pairs, not two of experiments and numbers: Dagster offers the whole product of two, most of which are no runs, counts it
as missing, and ends a backfill over it as failed (docs/operations.md has what was measured).
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from docml_assets.errors import DocmlError
from docml_assets.experiment.settings.settings import Settings
from docml_contract.names import RECONCILED_DATA, STEPS, RunPlace, check_experiment_name

EXPERIMENT = "experiment"
EXPERIMENT_RUN = "experiment_run"
RUN_KEY = re.compile(r"[1-9][0-9]{0,5}")

# A check by partition whose findings are people's and the new_data_sensor's, not the job's.
PRODUCTION_UNCHANGED = dg.AssetCheckKey(dg.AssetKey(RECONCILED_DATA), "production_unchanged")

experiments = dg.DynamicPartitionsDefinition(name=EXPERIMENT)
experiment_runs = dg.DynamicPartitionsDefinition(name=EXPERIMENT_RUN)


class BadPartition(DocmlError):
    """A partition key that no run can have."""


def partition_key(experiment: str, run: int) -> str:
    """The key of a run. BadName if the experiment's name is not allowed."""
    place = RunPlace(experiment, run)
    return f"{place.experiment}|{place.number}"


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


def register(instance: dg.DagsterInstance, experiment: str, run: int) -> str:
    """Add the keys of a run and of its experiment to the instance (adding a key again does nothing) and return the partition key."""
    key = partition_key(experiment, run)
    instance.add_dynamic_partitions(EXPERIMENT, [experiment])
    instance.add_dynamic_partitions(EXPERIMENT_RUN, [key])
    return key


def registration_requests(places: Iterable[RunPlace]) -> list[dg.AddDynamicPartitionsRequest]:
    """What a sensor returns to register runs: one request a definition, each key once, or Dagster refuses the whole tick."""
    found = [(place.experiment, partition_key(place.experiment, place.number)) for place in places]
    if not found:
        return []
    return [
        definition.build_add_request(sorted(keys))
        for definition, keys in zip((experiments, experiment_runs), map(set, zip(*found, strict=True)), strict=True)
    ]


def partition_tags(key: str) -> dict[str, str]:
    """The tags by which Dagster knows the partition of a run, and people filter the list of runs by experiment."""
    return {PARTITION_TAG: key, EXPERIMENT: run_place(key).experiment}


# Dagster shows no tag that begins so: these are for the assets and sensors, not for people.
_HIDDEN = ".dagster/docml-"
# The steps that the run performs, others are reused (absent: whatever is selected).
STEPS_TAG = f"{_HIDDEN}steps"
# The settings that do not freeze, as the experiment folder had them.
OPERATION_TAG = f"{_HIDDEN}operation"
# The set of documents that it classifies.
DOCUMENTS_TAG = f"{_HIDDEN}documents"
# What started the run.
TRIGGER_TAG = f"{_HIDDEN}trigger"
# Dagster's own: the key of a run, and on every run of a backfill which one.
PARTITION_TAG = "dagster/partition"
BACKFILL_TAG = "dagster/backfill"
# The process that executes it: a `resources.processes.Process` as text.
PROCESS_TAG = f"{_HIDDEN}process"

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
