"""DOCML_* variables -> parts of the deployment."""

from pathlib import Path

import pytest

from docml_assets.deployment import SAMPLE, Deployment, DeploymentError, work_on
from docml_contract.base import BadName
from tests.docml_assets.world import Notes, World


def test_the_defaults_work_on_the_bundled_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    deployment = Deployment({})
    assert deployment.kind == "local"
    assert deployment.store.local_path == tmp_path / "storage"
    assert deployment.production.local_path == SAMPLE / "artifacts"
    assert deployment.experiment_folder("EXP-1") == tmp_path / "experiments" / "EXP-1"
    assert deployment.labels.fingerprint("SELECT artifact_guid, label, sha256 AS file_hash FROM document_labels")
    assert not (tmp_path / "storage").exists()


def test_the_environment_is_read_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCML_ENV", "moon")
    with pytest.raises(DeploymentError, match=r"'moon': expected local or aws"):
        _ = Deployment.current().kind


def test_a_model_registry_takes_the_cloud() -> None:
    assert Deployment({}).registry is None
    assert Deployment({"DOCML_MODEL_REGISTRY": "none"}).registry is None
    with pytest.raises(DeploymentError, match="'mlflow': expected none or sagemaker"):
        _ = Deployment({"DOCML_MODEL_REGISTRY": "mlflow"}).registry
    with pytest.raises(DeploymentError, match="takes DOCML_ENV=aws and a store in S3: unset it here"):
        _ = Deployment({"DOCML_MODEL_REGISTRY": "sagemaker"}).registry


def test_an_image_is_for_the_cloud_only() -> None:
    assert Deployment({"DOCML_IMAGE": "image"}).image is None
    assert Deployment({"DOCML_IMAGE": "image", "DOCML_ENV": "aws"}).image == "image"


def test_an_experiment_name_leads_nowhere_else() -> None:
    with pytest.raises(BadName):
        Deployment({}).experiment_folder("../EXP-1")


def test_a_model_is_used_with_what_its_folder_says_now_where_that_does_not_freeze(world: World) -> None:
    world.write_experiment()
    claim = world.claim(1)
    folder = world.write_experiment(inference_instance_count=3, max_artifacts=5)
    notes = Notes()
    settings = work_on(world.deployment, claim, "holder", notes).settings
    assert (settings.inference_instance_count, settings.max_artifacts, notes.said) == (3, None, [])
    (folder / "settings.ini").write_text("[settings]\nNONSENSE = 1\n")
    assert work_on(world.deployment, claim, "holder", notes).settings == claim.settings
    (said,) = notes.said
    assert "going on with the settings the run was claimed with" in said
