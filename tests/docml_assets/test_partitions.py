"""Keys of partitions: what is accepted, and what is registered."""

import dagster as dg
import pytest

from docml_assets.partitions import (
    DOCUMENTS_TAG,
    PROCESS_TAG,
    STEPS_TAG,
    BadPartition,
    operation_of,
    partition_key,
    partition_tags,
    register,
    registration_requests,
    run_place,
    run_tags,
    steps_of,
    trigger_of,
)
from docml_assets.steps.snapshot import frozen_settings
from docml_contract.base import BadName
from docml_contract.names import RunPlace
from tests.docml_assets.world import World


def test_a_key_names_a_run() -> None:
    key = partition_key("EXP-3333-longformer", 12)
    assert key == "EXP-3333-longformer|12"
    place = run_place(key)
    assert (place.experiment, place.number) == ("EXP-3333-longformer", 12)


@pytest.mark.parametrize("experiment", ["EXP|1", "", "../EXP", "EXP 1", ".hidden"])
def test_an_experiment_that_would_vanish_or_lead_astray_is_refused(experiment: str) -> None:
    with pytest.raises(BadName):
        partition_key(experiment, 1)


@pytest.mark.parametrize("key", ["EXP-1", "EXP-1|0", "EXP-1|01", "EXP-1|one", "EXP-1|1|2", "EXP-1|"])
def test_keys_that_no_run_has(key: str) -> None:
    with pytest.raises(BadPartition, match="expected <experiment>"):
        run_place(key)


def test_registering_twice_is_registering_once() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        for run in (1, 2, 2):
            register(instance, "EXP-1", run)
        assert instance.get_dynamic_partitions("experiment") == ["EXP-1"]
        assert instance.get_dynamic_partitions("experiment_run") == ["EXP-1|1", "EXP-1|2"]


def test_what_a_sensor_asks_for() -> None:
    places = [RunPlace("EXP-2", 3), RunPlace("EXP-1", 3)]
    found = {request.partitions_def_name: list(request.partition_keys) for request in registration_requests(places)}
    assert found == {"experiment": ["EXP-1", "EXP-2"], "experiment_run": ["EXP-1|3", "EXP-2|3"]}
    assert registration_requests([]) == []


def test_settings_that_do_not_freeze_travel_in_a_tag(world: World) -> None:
    world.write_experiment()
    claim = world.claim(1)
    settings = claim.settings.with_operational({"max_cost_usd": 5.0, "training_instance_type": "ml.p3.2xlarge"})
    tags = run_tags(frozenset({"inference", "training"}), settings, {"kind": "test"})
    frozen = frozen_settings(claim, operation_of(tags))
    assert (frozen.max_cost_usd, frozen.training_instance_type) == (5.0, "ml.p3.2xlarge")
    assert frozen_settings(claim, operation_of({})).max_cost_usd is None
    assert steps_of(tags) == {"inference", "training"}
    assert trigger_of(tags, "a-run") == {"kind": "test"}


def test_a_run_without_tags_was_started_by_hand() -> None:
    assert steps_of({}) is None
    assert trigger_of({}, "a-run") == {"kind": "ui", "dagster_run_id": "a-run"}


def test_what_is_for_the_assets_alone_is_hidden_from_people(world: World) -> None:
    world.write_experiment()
    tags = run_tags(frozenset({"inference"}), world.claim(1).settings, {"kind": "test"})
    assert all(tag.startswith(".dagster/") for tag in (*tags, PROCESS_TAG, DOCUMENTS_TAG))
    assert partition_tags("EXP-1|2") == {"dagster/partition": "EXP-1|2", "experiment": "EXP-1"}


def test_unknown_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown cooking; expected some of reconciliation"):
        steps_of({STEPS_TAG: "cooking,training"})
