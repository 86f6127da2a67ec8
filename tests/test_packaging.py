"""What ships: the wheel holds the data files and works outside the checkout; constraints name what is installed."""

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run([*command, "--wheel-dir", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("docml-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, as pip would lay it out."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def tracked(*paths: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_the_wheel_holds_every_file_of_the_packages(installed: Path) -> None:
    packages = ("docml_assets", "resources", "trainer_image/docml_contract", "trainer_image/docml_trainer")
    for name in tracked(*packages):
        shipped = installed / name.removeprefix("trainer_image/")
        assert shipped.is_file(), name
    for name in ("docml_assets/dagster.yaml", "docml_assets/sample/labels.sqlite", "docml_contract/py.typed"):
        assert (installed / name).is_file()
    assert len(list((installed / "docml_assets/sample/artifacts").glob("*/raw_text.json"))) == 152


def test_the_wheel_holds_nothing_else(installed: Path) -> None:
    packages = {"docml_assets", "resources", "docml_contract", "docml_trainer"}
    assert {path.name for path in installed.iterdir()} == {*packages, "docml-0.1.0.dist-info"}
    assert not list(installed.rglob("__pycache__"))
    assert (installed / "docml-0.1.0.dist-info/licenses/LICENSE").is_file()


def test_the_command_line_works_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("DOCML_", "DAGSTER_"))}
    # -P and -c: neither the working folder nor the script's is on the path; the checkout's editable finder comes later.
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); sys.argv[0] = 'docml'\n"
        f"import docml_assets.cli as cli; assert cli.__file__.startswith({str(installed)!r}), cli.__file__\n"
        "cli.main()"
    )
    for arguments in (["--help"], ["new", "EXP-7-wheel"], ["validate", "EXP-7-wheel"], ["runs"]):
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            cwd=tmp_path,
            env=clean,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    assert (tmp_path / "experiments/EXP-7-wheel/settings.ini").is_file()


def test_constraints_name_the_installed_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pinned = {_normal(name): version for name, version in (line.split("==") for line in lines)}
    # A local label, as in torch 2.13.0+cpu, tells where a build comes from, not its version.
    installed = {_normal(d.name): d.version.partition("+")[0] for d in metadata.distributions()}
    differing = {name: (installed[name], pinned[name]) for name in installed.keys() & pinned.keys()}
    assert {name: pair for name, pair in differing.items() if pair[0] != pair[1]} == {}


def test_constraints_cover_what_pyproject_requires() -> None:
    pinned = {_normal(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()}
    required = set()
    for text in metadata.requires("docml") or ():
        name = re.match(r"[A-Za-z0-9._-]+", text)
        assert name is not None
        required.add(_normal(name[0]))
    assert required - pinned - {"docml"} == set()


def test_the_orchestrator_needs_no_torch() -> None:
    plain = [text for text in metadata.requires("docml") or () if "extra ==" not in text]
    aws = [text for text in metadata.requires("docml") or () if 'extra == "aws"' in text or "extra == 'aws'" in text]
    assert plain
    assert aws
    names = {_normal(re.split(r"[^A-Za-z0-9._-]", text)[0]) for text in [*plain, *aws]}
    assert not names & {"torch", "transformers", "datasets", "accelerate", "evaluate", "wandb"}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
