"""DOCML_* variables -> parts of the deployment."""

from pathlib import Path

import pytest

from docml_assets.deployment import SAMPLE, Deployment, DeploymentError
from docml_contract.base import BadName


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


def test_an_image_is_for_the_cloud_only() -> None:
    assert Deployment({"DOCML_IMAGE": "image"}).image is None
    assert Deployment({"DOCML_IMAGE": "image", "DOCML_ENV": "aws"}).image == "image"


def test_an_experiment_name_leads_nowhere_else() -> None:
    with pytest.raises(BadName):
        Deployment({}).experiment_folder("../EXP-1")
