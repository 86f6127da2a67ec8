"""docml image shows and runs the right docker commands."""

import os
import stat
import tomllib
from datetime import datetime, tzinfo
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner, Result

from docml_assets.cli import image
from docml_assets.experiment.scaffold import new_experiment

URI = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/docml:exp-1"
ROOT = Path(__file__).parents[3]
BASE = "pytorch:2.13.0-cu133-amzn2023-sagemaker"


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
    registry = "763104351884.dkr.ecr.eu-west-1.amazonaws.com"
    assert lines[0] == f"$ docker login --username AWS --password-stdin {registry}"
    assert lines[1] == (
        f"$ docker build --platform linux/amd64 -f {ROOT}/trainer_image/Dockerfile --build-arg BASE_IMAGE={registry}/{BASE} "
        f"-t {URI} {ROOT}"
    )
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


@pytest.mark.parametrize(
    ("domain", "region", "account"),
    [
        ("amazonaws.com", "us-east-1", "763104351884"),
        ("amazonaws.com", "af-south-1", "626614931356"),
        ("amazonaws.com", "ap-east-1", "871362719292"),
        ("amazonaws.com.cn", "cn-northwest-1", "727897471807"),
        ("amazonaws.com", "us-gov-west-1", "442386744353"),
        ("amazonaws.eu", "eusc-de-east-1", "204133271717"),
    ],
)
def test_the_base_comes_from_the_images_region(
    experiment: Path, domain: str, region: str, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCML_IMAGE", f"123456789012.dkr.ecr.{region}.{domain}/docml:1")
    output = call("build", experiment.name, "--dry-run").output
    assert f"--password-stdin {account}.dkr.ecr.{region}.{domain}\n" in output
    assert f"--build-arg BASE_IMAGE={account}.dkr.ecr.{region}.{domain}/{BASE} " in output


@pytest.mark.parametrize(
    ("uri", "warning"),
    [
        ("registry.example/docml:1", ""),
        (
            "123456789012.dkr.ecr.xx-north-9.amazonaws.com/docml:1",
            "no registry of AWS's containers is known in xx-north-9: using the public gallery's image",
        ),
    ],
)
def test_elsewhere_the_base_is_the_public_gallerys(
    experiment: Path, uri: str, warning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCML_IMAGE", uri)
    output = call("build", experiment.name, "--dry-run").output
    assert warning in output
    assert "BASE_IMAGE" not in output
    assert f"\nARG BASE_IMAGE=public.ecr.aws/deep-learning-containers/{BASE}\n" in (
        (ROOT / "trainer_image/Dockerfile").read_text()
    )


def test_every_region_has_a_registry() -> None:
    session = boto3.Session()
    known = image._accounts(BASE.partition(":")[2])
    for partition in ("aws", "aws-cn", "aws-us-gov", "aws-eusc"):
        assert set(session.get_available_regions("sagemaker", partition_name=partition)) <= known.keys()


@pytest.mark.parametrize(("day", "warned"), [("2027-07-20", False), ("2027-07-21", True)])
def test_a_base_that_is_patched_no_more(
    experiment: Path, day: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Clock":
            return cls.fromisoformat(f"{day}T12:00:00+00:00")

    monkeypatch.setattr(image, "datetime", Clock)
    said = "AWS has not patched public.ecr.aws/deep-learning-containers/"
    assert (said in call("build", experiment.name, "--dry-run").output) is warned
    assert said not in call("build", experiment.name, "--dry-run", "--base", "python-torch:1").output


def test_the_images_requirements_are_the_trainers() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = (ROOT / "trainer_image/requirements.txt").read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    assert {entry for entry in extras["trainer"] if not entry.startswith("torch")} == {
        line for line in listed if not line.startswith(("boto3", "pydantic"))
    }
