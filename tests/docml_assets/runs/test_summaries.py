"""What runs came to, read from the store."""

from docml_assets.runs.summaries import summaries
from docml_assets.steps.preparation import run_preparation
from docml_assets.steps.reconciliation import reconciliation
from docml_assets.steps.training import run_training
from tests.docml_assets.world import World


def test_steps_say_how_far_they_are_and_whose_result_they_took(world: World) -> None:
    world.write_experiment()
    first, second = world.work(world.claim(1)), world.work(world.claim(2))
    for work in (first, second):
        reconciliation(work)
        run_preparation(work)
    run_training(first)
    found = {run.number: run for run in summaries(world.store, "EXP-1")}
    assert found[1].steps == {"reconciliation": "done", "preparation": "done", "training": "done", "inference": ""}
    assert found[2].steps["preparation"] == "done (run 1)"
    assert found[2].steps["training"] == ""
    assert found[1].scores == {}


def test_an_experiment_without_runs_has_none(world: World) -> None:
    assert summaries(world.store, "EXP-1") == []
