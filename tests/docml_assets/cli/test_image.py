"""docml image shows and runs the right docker commands; the Dockerfile passes its linter."""

import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from docml_assets.cli import image
from docml_assets.experiment.scaffold import new_experiment

URI = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/docml:exp-1"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCML_EXPERIMENTS", str(tmp_path))
    monkeypatch.setenv("DOCML_IMAGE", URI)
    new_experiment(tmp_path / "EXP-1-image", None)
    return tmp_path / "EXP-1-image"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(image.image, arguments)


def test_a_dry_run_shows_the_commands(experiment: Path) -> None:
    result = call("build", experiment.name, "--dry-run")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("$")]
    assert lines[0] == ("$ docker login --username AWS --password-stdin 763104351884.dkr.ecr.us-east-1.amazonaws.com")
    assert lines[1] == (f"$ docker build --platform linux/amd64 -f {ROOT}/trainer_image/Dockerfile -t {URI} {ROOT}")
    pushed = call("push", experiment.name, "--dry-run")
    assert f"$ docker push {URI}" in pushed.output


def test_an_experiments_own_dockerfile_goes_on_top(experiment: Path) -> None:
    (experiment / "sagemaker.Dockerfile").write_text("ARG DOCML_BASE\nFROM ${DOCML_BASE}\nRUN pip install spacy\n")
    output = call("build", experiment.name, "--dry-run", "--base", "python-torch:1").output
    assert "login" not in output
    assert "--build-arg BASE_IMAGE=python-torch:1 -t " + URI + "-base" in output
    assert f"-f {experiment}/sagemaker.Dockerfile --build-arg DOCML_BASE={URI}-base -t {URI} {experiment}" in output


def test_without_a_uri_the_message_names_the_settings(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCML_IMAGE")
    result = call("build", experiment.name, "--dry-run")
    assert isinstance(result.exception, image.ImageError)
    assert "DOCKER_IMAGE" in str(result.exception)


def test_docker_is_run_and_its_failure_told(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n[ "$1" != push ]\n')
    docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCML_IMAGE", "registry.example/docml:1")
    assert call("build", experiment.name, "--base", "python-torch:1").exit_code == 0
    result = call("push", experiment.name)
    assert "exit code 1" in str(result.exception)
    called = (tmp_path / "called").read_text().splitlines()
    assert [line.split()[0] for line in called] == ["build", "push"]


def test_a_tag_that_exists_is_told_with_the_next_one(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    said = "tag invalid: The image tag 'v9' already exists in the 'docml' repository and cannot be overwritten because the tag is immutable."
    docker.write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 1\n')
    docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCML_IMAGE", "registry.example/docml:v9")
    result = call("push", experiment.name)
    assert "registry.example/docml:v9 exists already, and the tags of its repository are immutable" in str(
        result.exception
    )
    assert "for example registry.example/docml:v10, in DOCKER_IMAGE or DOCML_IMAGE" in str(result.exception)
    assert said in result.output, "docker's own words are passed on"


def test_the_dockerfile_passes_hadolint() -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, ROOT / "trainer_image/Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_images_requirements_are_the_trainers() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = (ROOT / "trainer_image/requirements.txt").read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    assert {entry for entry in extras["trainer"] if not entry.startswith("torch")} == {
        line for line in listed if not line.startswith(("boto3", "pydantic"))
    }
