"""What a Dagster run carries."""

import pytest

from docml_assets.steps.snapshot import frozen_settings
from docml_assets.tags import STEPS_TAG, operation_of, run_tags, steps_of, trigger_of
from tests.docml_assets.world import World


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


def test_unknown_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown cooking; expected some of reconciliation"):
        steps_of({STEPS_TAG: "cooking,training"})
