"""Inference as a step: the job's predictions become the run's report."""

import json

from docml_assets.report.schema import read_report
from docml_assets.steps.inference import inference
from docml_assets.steps.preparation import preparation
from docml_assets.steps.reconciliation import reconciliation
from docml_assets.steps.training import training
from docml_assets.steps.work import Outcome, Work
from tests.docml_assets.world import FakeJobs, World


def whole(work: Work) -> Outcome | None:
    reconciliation(work)
    preparation(work)
    training(work)
    return inference(work)


def test_the_report_is_published_and_kept(world: World) -> None:
    world.write_experiment(model_names="one, two")
    jobs = FakeJobs(world.store)
    work = world.work(world.claim(1), jobs)
    made = whole(work)
    assert made is not None
    (spec,) = [spec for spec in jobs.specs if spec.step == "inference"]
    files = {channel.name: channel.files for channel in spec.channels}
    assert files["models"] == tuple(
        f"run_1/training/{m}/{f}" for m in ("one", "two") for f in ("model.pt", "export.json")
    )
    report = read_report(work.store, work.place)
    assert set(report.models) == {"one", "two"}
    assert {entry.path for entry in made.manifest.files} >= {"report.json", "report.html", "predictions.parquet"}
    again = inference(work)
    assert again is not None
    assert (again.how, again.data_version) == ("finished", made.data_version)
    assert jobs.ran.count("inference") == 1


def test_the_next_run_is_compared_with_the_earlier_one(world: World) -> None:
    world.write_experiment()
    whole(world.work(world.claim(1)))
    world.write_experiment(hyperparameters={"epochs": 2})
    work = world.work(world.claim(2))
    whole(work)
    report = read_report(work.store, work.place)
    assert report.past.runs_on_this_test_set == 1
    assert report.past.comparisons[0].run == 1
    html = world.store.get("EXP-1/run_2/inference/report.html").decode()
    assert "which is a" in html  # excerpts of documents


def test_turned_off_it_takes_a_report_on_the_same_models_and_data_or_nothing(world: World) -> None:
    world.write_experiment()
    made = whole(world.work(world.claim(1)))
    assert made is not None
    taken = whole(world.work(world.claim(2), performed=frozenset({"reconciliation"})))
    assert taken is not None
    assert (taken.how, taken.reused_from, taken.data_version) == ("reused", 1, made.data_version)
    assert json.loads(world.store.get("EXP-1/run_2/inference/report.json"))["run"] == 1
    world.write_experiment(hyperparameters={"epochs": 2})
    assert whole(world.work(world.claim(3), performed=frozenset({"training"}))) is None
