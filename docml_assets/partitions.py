"""Experiment × run: the two dynamic partition dimensions, their key rules and their registration.

A partition is one run of one experiment, `EXP-3333-longformer|1`. Dagster shows the cross product of both dimensions; only
claimed runs (`docml_assets.runs.claims`) exist, and the snapshot asset refuses the others.
"""

import re
import warnings
from collections.abc import Iterable

import dagster as dg

from docml_assets.errors import DocmlError
from docml_contract.names import RunPlace, check_experiment_name

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
