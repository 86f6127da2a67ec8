"""The deployment folder: made with the report or at first use, hashed, verified."""

import hashlib
import json

import pytest

from docml_assets.report.schema import read_report
from docml_assets.steps.deployment import UnknownModel, choose_model, read_deployment
from docml_assets.steps.work import NotReady, Work
from docml_contract import names
from docml_contract.base import IncompleteArtifact
from docml_contract.manifests import ModelContext
from docml_contract.policy import Policy
from tests.docml_assets.steps.test_inference import whole
from tests.docml_assets.world import LABELS, FakeJobs, World

FILES = {"context.json", "export.json", "model.pt", "requirements.txt", "user_defined_funcs.py"}


@pytest.fixture
def work(world: World) -> Work:
    world.write_experiment(model_names="one, two", hyperparameters={"epochs": 1, "max_length": 7})
    return world.work(world.claim(1), FakeJobs(world.store))


def test_it_is_made_with_the_report_and_holds_what_an_answer_needs(work: Work) -> None:
    whole(work)
    for model in ("one", "two"):
        folder = work.place.deployment(model)
        manifest = read_deployment(work, model)
        assert {entry.path for entry in manifest.files} == FILES
        for entry in manifest.files:
            assert hashlib.sha256(work.store.get(f"{folder}/{entry.path}")).hexdigest() == entry.sha256
        trained = work.store.get(f"{work.place.trained(model, tuned=False)}/{names.TORCHSCRIPT}")
        assert work.store.get(f"{folder}/{names.TORCHSCRIPT}") == trained
        context = ModelContext.from_bytes(work.store.get(f"{folder}/{names.MODEL_CONTEXT}"), "context")
        assert (context.run, context.model_name, context.labels) == (1, model, LABELS)
        assert context.own_hyperparameters == {"max_length": 7}
        assert not context.has_process_func


def test_a_run_finished_before_gets_it_at_first_use_without_a_job(work: Work) -> None:
    whole(work)
    folder = work.place.deployment("one")
    before = json.loads(work.store.get(f"{folder}/{names.MANIFEST}"))
    work.store.delete([stored.key for stored in work.store.list(folder)])
    jobs = work.jobs
    assert isinstance(jobs, FakeJobs)
    ran = list(jobs.ran)
    made = read_deployment(work, "one")
    assert (made.data_version, jobs.ran) == (before["data_version"], ran)


def test_a_decision_policy_is_made_with_the_report_and_says_what_the_report_says(world: World) -> None:
    world.write_experiment(auto_accept_precision="0.6")
    jobs = FakeJobs(world.store)
    work = world.work(world.claim(1), jobs)
    whole(work)
    (spec,) = [spec for spec in jobs.specs if spec.step == "inference"]
    assert [channel.name for channel in spec.channels] == ["test", "valid", "models"]
    manifest = read_deployment(work, "small")
    assert {entry.path for entry in manifest.files} == {*FILES, names.POLICY}
    key = f"{work.place.deployment('small')}/{names.POLICY}"
    policy = Policy.from_bytes(work.store.get(key), key)
    assert read_report(work.store, work.place).policies == {"small": policy}
    assert policy.target == 0.6
    work.store.delete([stored.key for stored in work.store.list(work.place.deployment("small"))])
    assert read_deployment(work, "small").data_version == manifest.data_version


def test_a_report_with_another_policy_is_not_taken(world: World) -> None:
    world.write_experiment()
    whole(world.work(world.claim(1)))
    world.write_experiment(auto_accept_precision="0.6")
    assert whole(world.work(world.claim(2), performed=frozenset({"reconciliation"}))) is None


def test_a_changed_file_is_refused(work: Work) -> None:
    whole(work)
    work.store.put(f"{work.place.deployment('one')}/{names.USER_FUNCTIONS}", b"import os\n")
    with pytest.raises(IncompleteArtifact, match=r"user_defined_funcs\.py"):
        read_deployment(work, "one")


def test_the_model_must_be_clear_and_there(work: Work) -> None:
    with pytest.raises(UnknownModel, match="compares one, two: name one of them with --model"):
        choose_model(work, None)
    with pytest.raises(UnknownModel, match="has no model 'three'"):
        choose_model(work, "three")
    assert choose_model(work, "two") == "two"
    with pytest.raises(NotReady, match="best_torchscript_model has not been materialized"):
        read_deployment(work, "one")
