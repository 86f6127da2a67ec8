"""Keys of partitions: what is accepted, and what is registered."""

import dagster as dg
import pytest

from docml_assets.partitions import BadPartition, partition_key, register, registration_requests, run_place
from docml_contract.errors import BadName
from docml_contract.names import RunPlace


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
        assert instance.get_dynamic_partitions("run") == ["1", "2"]


def test_what_a_sensor_asks_for() -> None:
    places = [RunPlace("EXP-2", 3), RunPlace("EXP-1", 3)]
    found = {request.partitions_def_name: list(request.partition_keys) for request in registration_requests(places)}
    assert found == {"experiment": ["EXP-1", "EXP-2"], "run": ["3"]}
    assert registration_requests([]) == []
