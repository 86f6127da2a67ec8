"""Inference as a step: the job's predictions become the run's report."""

import json

import numpy as np
import pytest

from docml_assets.report.evidence import EXCERPT
from docml_assets.report.schema import read_report
from docml_assets.steps.inference import EXCERPT_CHARACTERS, read_excerpts, run_inference, text_of
from docml_assets.steps.preparation import run_preparation
from docml_assets.steps.reconciliation import reconciliation
from docml_assets.steps.training import run_training
from docml_assets.steps.work import Outcome, Work
from docml_assets.tables import read_parquet
from tests.docml_assets.world import LABELS, FakeJobs, World


def whole(work: Work) -> Outcome | None:
    reconciliation(work)
    run_preparation(work)
    run_training(work)
    return run_inference(work)


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
    again = run_inference(work)
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
    assert [(entry.run, entry.changed) for entry in report.history] == [(1, ()), (2, ("[hyperparameters] epochs",))]
    published = read_parquet(world.store.get("EXP-1/run_2/inference/predictions.parquet"))
    assert all(np.isclose(sum(row), 1) for row in published["small_probabilities"].to_pylist())
    html = world.store.get("EXP-1/run_2/inference/report.html").decode()
    assert "which is a" in html  # excerpts of documents


def test_the_learning_curve_of_the_first_model_is_reported(world: World) -> None:
    world.write_experiment(model_names="one, two", seeds="13, 14", learning_curve="true", inference_in_training="false")
    for number in range(48):
        world.add_document(f"more-{number:02d}", LABELS[number % 2])
    work = world.work(world.claim(1))
    assert whole(work) is not None
    curve = read_report(work.store, work.place).model_curve
    assert curve is not None
    sizes = [size for size, _ in curve.points]
    assert sizes[0] == sizes[1] == sizes[2] + sizes[3] == curve.documents // 2, "both seeds, then both halves"
    assert set(curve.labels) == set(LABELS)
    low, high = curve.f1_macro.interval80
    assert low <= curve.f1_macro.forecast <= high
    page = work.store.get(f"{work.place.inference}/report.html").decode()
    assert 'id="more"' in page
    assert f"Trained on all {sizes[0]} train documents" in page


def test_every_seed_is_judged_on_the_test_split(world: World) -> None:
    world.write_experiment(model_names="one, two", seeds="13, 14", auto_accept_precision="0.5")
    jobs = FakeJobs(world.store)
    work = world.work(world.claim(1), jobs)
    made = whole(work)
    assert made is not None
    assert jobs.ran[-2:] == ["inference seed-13", "inference seed-14"]
    paths = {channel.name: channel.files for channel in jobs.specs[-1].channels}["models"]
    assert paths is not None
    assert paths[0] == "run_1/training/one/seed-14/model.pt"
    assert len({job.name for job in made.jobs}) == 2
    report = read_report(work.store, work.place)
    assert {name: found.chosen for name, found in report.seeds.items()} == {"one": 14, "two": 14}
    assert [score.valid_f1 for score in report.seeds["one"].scores] == [0.8, 0.9]
    assert set(report.policy) == {"one", "two"}
    assert report.comparison[0].seeds is not None
    again = run_inference(work)
    assert again is not None
    assert again.how == "finished"


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


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            json.dumps({"id": "abc", "text": "a sentence of some length\nand more"}).encode(),
            "a sentence of some length and more",
        ),
        (
            json.dumps({"pages": [{"words": "the first page of a letter"}, "the second page of it"]}).encode(),
            "the first page of a letter the second page of it",
        ),
        (b"plain  text\nas it is", "plain text as it is"),
        (b"\x89PNG\xff", ""),
        (b"[1, 2]", ""),
        (b"[" * 100_000, "[" * 100_000),
        (b'{"a":' * 900 + b'"a text of some length"' + b"}" * 900, "a text of some length"),
        (b"9" * 100_000, "9" * 100_000),
    ],
)
def test_text_is_found_in_json_and_in_plain_files(content: bytes, text: str) -> None:
    assert text_of(content) == text


def test_a_document_is_found_by_its_guid(world: World) -> None:
    long = world.root / "production" / "doc-01" / "raw_text.json"
    long.write_text(json.dumps({"text": "word " * 200}))
    world.write_experiment()
    work = world.work(world.claim(1))
    reconciliation(work)
    excerpt = read_excerpts(work)
    assert excerpt("doc-00").startswith("the text of doc-00")
    assert len(excerpt("doc-01")) == EXCERPT_CHARACTERS > EXCERPT, "whoever shows it cuts it at a word"
    assert excerpt("nobody") == ""


def test_the_first_page_of_a_pattern_that_holds_text_is_the_excerpt(world: World) -> None:
    for name, content in (("page_10.txt", b"the tenth page"), ("page_2.txt", b"the second page")):
        (world.root / "production/doc-01" / name).write_bytes(content)
    world.write_experiment(
        files_from_prod="raw_text.json, page_*.txt",
        files_optional="page_*.txt",
        model_input_files="page_*.txt, raw_text.json",
    )
    work = world.work(world.claim(1))
    reconciliation(work)
    excerpt = read_excerpts(work)
    assert excerpt("doc-01") == "the second page"
    assert excerpt("doc-00").startswith("the text of doc-00")
