"""Where a training reports."""

import pytest

from docml_assets.steps.work import TrackingAccount, TrackingError
from tests.docml_assets.world import World


def test_groups_are_experiments_and_runs_name_the_model(world: World) -> None:
    world.write_experiment(model_names="one, two", wandb_mode="offline", wandb_project="letters")
    claim = world.claim(1)
    tracking = TrackingAccount({}).of(claim.settings, claim.place, "two", tuned=False)
    assert (tracking.group, tracking.name, tracking.job_type) == ("EXP-1", "run_1-two", "comparison")
    assert (tracking.mode, tracking.project) == ("offline", "letters")
    assert TrackingAccount({}).of(claim.settings, claim.place, "two", tuned=True).job_type == "tuning"


def test_online_without_a_key_is_refused_before_a_job_starts(world: World) -> None:
    world.write_experiment(wandb_mode="online")
    claim = world.claim(1)
    with pytest.raises(TrackingError, match="WANDB_API_KEY"):
        TrackingAccount({}).of(claim.settings, claim.place, "small", tuned=False)
    assert (
        TrackingAccount({"WANDB_API_KEY": "key"}).of(claim.settings, claim.place, "small", tuned=False).mode == "online"
    )
