"""The Makefile's set-up on machines that lack something."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def make(folder: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`make` in a folder; the executables in `path` hide those of the machine."""
    env = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else None
    return subprocess.run(["make", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False)


def python(path: Path, version: str) -> Path:
    """An interpreter that says it is of this version, and does nothing."""
    fits = re.fullmatch(r"3\.1[123]\..*", version) is not None
    return executable(path, f'case "$1" in --version) echo "Python {version}";; *) exit {0 if fits else 1};; esac')


def test_no_target_shows_the_targets(folder: Path) -> None:
    shown = make(folder).stdout
    targets = ("demo", "ui", "test", "test-slow", "test-faults", "test-distros", "test-image", "bench", "clean")
    assert all(f"make {target}" in shown for target in targets)


def test_without_python(folder: Path) -> None:
    done = make(folder, "demo", "PYTHON=")
    assert done.returncode != 0
    assert "docml needs Python 3.11 to 3.13: found " in done.stderr
    assert "apt-get install python3 python3-venv) or name one with make PYTHON=/path/to/python3" in done.stderr


def test_with_another_python(folder: Path) -> None:
    old = python(folder / "python3.9", "3.9.2")
    done = make(folder, "demo", f"PYTHON={old}")
    assert done.returncode != 0
    assert f"docml needs Python 3.11 to 3.13: {old} is Python 3.9.2" in done.stderr


@pytest.mark.parametrize(
    ("found", "taken"),
    [
        ({"python3": "3.13.5", "python3.12": "3.12.3", "python3.11": "3.11.2"}, "python3"),
        ({"python3": "3.12.3", "python3.11": "3.11.2"}, "python3"),
        ({"python3": "3.14.1", "python3.13": "3.13.5", "python3.11": "3.11.2"}, "python3.13"),
        ({"python3": "3.10.4", "python3.13": "3.10.4", "python3.12": "3.12.3"}, "python3.12"),
        ({"python3": "3.10.4", "python3.13": "3.10.4", "python3.12": "3.10.4", "python3.11": "3.11.2"}, "python3.11"),
    ],
)
def test_the_python_that_is_taken(folder: Path, found: dict[str, str], taken: str) -> None:
    for name, version in found.items():
        python(folder / name, version)
    assert f"{folder / taken} -m venv .venv" in make(folder, "-n", "demo", path=folder).stdout


def test_no_python_fits(folder: Path) -> None:
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        python(folder / name, "3.9.2")
    done = make(folder, "demo", path=folder)
    assert done.returncode != 0
    assert "docml needs Python 3.11 to 3.13: found Python 3.9.2; install one" in done.stderr


def test_the_makefile_supports_what_pyproject_declares(folder: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    declared = {name.rpartition(" ")[2] for name in project["classifiers"] if " Python :: 3." in name}
    accepted = set()
    for minor in range(9, 16):
        (line,) = re.findall(r"^SUPPORTED := (.*)$", (folder / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        code = f"import sys; sys.version_info = (3, {minor}, 0); {line}"
        if subprocess.run([sys.executable, "-c", code], check=False).returncode == 0:
            accepted.add(f"3.{minor}")
    assert accepted == declared == {"3.11", "3.12", "3.13"}


def test_with_a_python_without_venv(folder: Path) -> None:
    bare = executable(folder / "python3.11", 'case "$1" in -c) exit 0;; *) exit 1;; esac')
    done = make(folder, "test", f"PYTHON={bare}")
    assert done.returncode != 0
    assert "could not make a virtual environment (Debian, Ubuntu: apt-get install python3-venv)" in done.stderr
    assert not (folder / ".venv").exists()


def test_an_index_of_cpu_builds_is_passed_to_pip(folder: Path) -> None:
    with_index = make(folder, "-n", "demo", "TORCH_INDEX=https://torch.example/cpu").stdout
    assert "--extra-index-url https://torch.example/cpu torch==2" in with_index
    assert with_index.count("https://torch.example") == 1, "everything else comes from the index that pip is set to"
    assert "extra-index-url" not in make(folder, "-n", "demo").stdout


@pytest.mark.parametrize("code", [0, 1])
def test_the_installation_says_how_far_it_is(folder: Path, code: int) -> None:
    """A python that says what pip says of the lock's packages, and ends as pip does."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / ".python").touch()
    lines = r"s/^\([^ ]*==[^ ]*\).*/Collecting \1 (from -r requirements\/demo.txt)\n  Downloading \1.whl (1 MB)/p"
    executable(
        folder / ".venv" / "bin" / "python",
        f'case "$*" in *hashes*) sed -n "{lines}" requirements/demo.txt; echo "Installing collected packages: a, b"; exit {code};; esac',
    )
    done = make(folder, ".venv/.demo")
    lock = (folder / "requirements" / "demo.txt").read_text(encoding="utf-8").splitlines()
    packages = sum("==" in line for line in lock)
    said = done.stdout.splitlines()
    assert said[1].startswith(f"  20 of {packages} packages: ")
    assert f"  {packages} of {packages} packages: yarl" in done.stdout
    assert "  installing them …" in said
    assert not any("Downloading" in line for line in said)
    assert (folder / ".venv" / ".demo").exists() == (done.returncode == 0) == (code == 0)


def test_the_demo_installs_less_than_the_tests(folder: Path) -> None:
    hashed = "--require-hashes --no-deps --only-binary :all: --requirement requirements/{}.txt"
    assert hashed.format("demo") in make(folder, "-n", "demo").stdout
    assert hashed.format("dev") in make(folder, "-n", "test").stdout
    # once the tests' packages are there, the demo keeps them up to date instead of falling behind them
    (folder / ".venv").mkdir()
    (folder / ".venv" / ".dev").touch()
    assert hashed.format("dev") in make(folder, "-n", "demo").stdout
