"""docml image: builds and pushes the image that an experiment's jobs run in."""

import json
import os
import re
import shlex
import subprocess
from datetime import UTC, date, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from docml_assets.cli.arguments import complete_experiment
from docml_assets.errors import DocmlError
from docml_assets.terminal import say

ROOT = Path(__file__).parents[2]
DOCKERFILE = "trainer_image/Dockerfile"
_REGISTRY = re.compile(r"(?P<account>\d{12})\.dkr\.ecr(-fips)?\.(?P<region>[a-z0-9-]+)\.(?P<domain>[a-z0-9.-]+)/")
# Of the distribution sagemaker-core: in which account AWS keeps its containers for PyTorch, by version and region.
_REGISTRIES = "sagemaker/core/image_uri_config/pytorch-amzn2023.json"
_IMMUTABLE = re.compile(r"tag.*already exists|immutable", re.IGNORECASE)


class ImageError(DocmlError):
    """An image cannot be built or pushed. `said`: docker's own words, where it said some."""

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


@click.group(name="image")
def image() -> None:
    """Build and push the image of an experiment's jobs (Docker is needed).

    The image's URI is the experiment's DOCKER_IMAGE, else the deployment's DOCML_IMAGE. Functions and settings are not in it: they
    travel with every job, so that only changed dependencies need a new image.
    """


@image.command()
@click.argument("experiment", shell_complete=complete_experiment)
@click.option(
    "--base", help="Base image with Python 3.11 or later and torch.  [default: AWS's container in the image's region]"
)
@click.option(
    "--platform", default="linux/amd64", show_default=True, help="Platform of the machines that run the jobs."
)
@click.option("--dry-run", is_flag=True, help="Only show the commands.")
def build(experiment: str, base: str | None, platform: str, dry_run: bool) -> None:
    """Build EXPERIMENT's image: the trainer's, and the experiment's sagemaker.Dockerfile on top if there is one."""
    uri, extension = _target(experiment)
    _check_checkout()
    if base is None:
        _warn_of_unpatched_base(datetime.now(UTC).date())
        base = _regional_base(uri)
    if base is not None:
        _sign_in(base, dry_run)
    trainer = f"{uri}-base" if extension else uri
    arguments = ["--build-arg", f"BASE_IMAGE={base}"] if base else []
    _docker(
        ["build", "--platform", platform, "-f", str(ROOT / DOCKERFILE), *arguments, "-t", trainer, str(ROOT)], dry_run
    )
    if extension:
        arguments = ["--build-arg", f"DOCML_BASE={trainer}", "-t", uri, str(extension.parent)]
        _docker(["build", "--platform", platform, "-f", str(extension), *arguments], dry_run)
    say(f"{'would build' if dry_run else 'built'} {uri}")


@image.command()
@click.argument("experiment", shell_complete=complete_experiment)
@click.option("--dry-run", is_flag=True, help="Only show the commands.")
def push(experiment: str, dry_run: bool) -> None:
    """Push EXPERIMENT's image, as `docml image build` tagged it."""
    uri, _ = _target(experiment)
    _sign_in(uri, dry_run)
    _push(uri, dry_run)
    say(f"{'would push' if dry_run else 'pushed'} {uri}")
    say("jobs use it if DOCKER_IMAGE in settings.ini, or DOCML_IMAGE, names it")


def _target(experiment: str) -> tuple[str, Path | None]:
    """(image URI, the experiment's own Dockerfile if it has one)."""
    from docml_assets.deployment import Deployment
    from docml_assets.experiment.folder import DOCKERFILE as EXTENSION
    from docml_assets.experiment.folder import ExperimentFolder

    deployment = Deployment.current()
    path = deployment.experiment_folder(experiment)
    uri = ExperimentFolder.load(path).settings.docker_image or deployment.environment.get("DOCML_IMAGE")
    if not uri:
        raise ImageError(
            f"{experiment} names no image: set DOCKER_IMAGE in {path / 'settings.ini'}, or DOCML_IMAGE, to the URI to build, "
            "for example 123456789012.dkr.ecr.eu-west-1.amazonaws.com/docml:1"
        )
    own = path / EXTENSION
    return uri, own if own.is_file() else None


def _check_checkout() -> None:
    if not (ROOT / DOCKERFILE).is_file():
        raise ImageError(f"{ROOT / DOCKERFILE} does not exist: build images from a checkout of docml's repository")


def _default(argument: str) -> str:
    """What the Dockerfile takes for an argument that is not given."""
    found = re.search(rf"^ARG {argument}=(\S+)", (ROOT / DOCKERFILE).read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found.group(1)


def _warn_of_unpatched_base(today: date) -> None:
    until = date.fromisoformat(_default("BASE_PATCHED_UNTIL"))
    if today > until:
        say(
            f"AWS has not patched {_default('BASE_IMAGE')} since {until}: name a newer one with --base, or in {DOCKERFILE}",
            fg="yellow",
        )


def _regional_base(uri: str) -> str | None:
    """The Dockerfile's base in AWS's registry of the region that the image goes to; None where that is not known."""
    target = _REGISTRY.match(uri)
    if target is None:
        return None
    name = _default("BASE_IMAGE").rpartition("/")[2]
    accounts = _accounts(name.partition(":")[2])
    if target["region"] not in accounts:
        say(
            f"no registry of AWS's containers is known in {target['region']}: using the public gallery's image",
            fg="yellow",
        )
        return None
    return f"{accounts[target['region']]}.dkr.ecr.{target['region']}.{target['domain']}/{name}"


def _accounts(tag: str) -> dict[str, str]:
    """Account by region, of AWS's registries with a container of this tag."""
    try:
        path = metadata.distribution("sagemaker-core").locate_file(_REGISTRIES)
    except metadata.PackageNotFoundError as error:
        raise ImageError("AWS's registries are not known here: pip install 'docml[aws]', or give --base") from error
    versions = json.loads(Path(str(path)).read_text(encoding="utf-8"))["training"]["versions"]
    accounts: dict[str, str] = versions[".".join(tag.split(".")[:2])]["registries"]
    return accounts


def _sign_in(image: str, dry_run: bool) -> None:
    """Sign Docker in to the image's registry if it is one of AWS's. The password goes through a pipe, never into a command line."""
    found = _REGISTRY.match(image)
    if found is None:
        return
    registry = image.split("/", 1)[0]
    arguments = ["login", "--username", "AWS", "--password-stdin", registry]
    _docker(arguments, dry_run, password=None if dry_run else _password(found["account"], found["region"]))


def _password(account: str, region: str) -> str:
    import base64

    from resources import aws

    client: Any = aws.client("ecr", {**os.environ, "AWS_REGION": region})
    try:
        answer = client.get_authorization_token(registryIds=[account])
    except Exception as error:
        raise ImageError(
            f"ECR in {region} gave no sign-in for {account} ({error}): check the credentials (AWS_PROFILE or AWS_ACCESS_KEY_ID) "
            "and ecr:GetAuthorizationToken"
        ) from error
    token = base64.b64decode(answer["authorizationData"][0]["authorizationToken"]).decode()
    return token.partition(":")[2]


def _push(uri: str, dry_run: bool) -> None:
    """Push the image. A registry that keeps its tags as they are is told by what to change."""
    try:
        _docker(["push", uri], dry_run)
    except ImageError as error:
        if not _IMMUTABLE.search(error.said):
            raise
        name, _, tag = uri.rpartition(":")
        raise ImageError(
            f"{uri} exists already, and the tags of its repository are immutable (what jobs ran in stays what it was): name another tag, "
            f"for example {name}:{_next_tag(tag)}, in DOCKER_IMAGE or DOCML_IMAGE, then build and push that one"
        ) from error


def _next_tag(tag: str) -> str:
    """A tag of the same kind: its last number raised by one."""
    head, number = re.fullmatch(r"(.*?)(\d*)", tag).groups()  # type: ignore[union-attr]
    return f"{head}{int(number) + 1}" if number else f"{tag}-2"


def _docker(arguments: list[str], dry_run: bool, *, password: str | None = None) -> None:
    """Run docker, or show how. People see what it says while it runs; of a push ImageError carries it, too."""
    line = ["docker", *arguments]
    say(f"$ {shlex.join(line)}", fg="cyan")
    if dry_run:
        return
    said = []
    heard = subprocess.PIPE if arguments[0] == "push" else None  # a build that is listened to shows no progress
    try:
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stderr=heard, text=True)
    except FileNotFoundError as error:
        raise ImageError(
            "docker is not installed, or not on the PATH: install Docker, or see the commands with --dry-run"
        ) from error
    with process:
        assert process.stdin is not None
        process.stdin.write(password or "")
        process.stdin.close()
        for text in process.stderr or ():
            said.append(text)
            say(text.removesuffix("\n"), err=True)
    if process.returncode:
        message = f"docker {arguments[0]} failed with exit code {process.returncode}; its own message is above"
        raise ImageError(message, "".join(said))
