"""The Makefile's set-up on machines that lack something."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_no_target_shows_the_targets(folder: Path) -> None:
    shown = make(folder).stdout
    assert all(f"make {target}" in shown for target in ("demo", "ui", "test", "test-slow", "bench", "clean"))


def test_without_python(folder: Path) -> None:
    done = make(folder, "demo", "PYTHON=")
    assert done.returncode != 0
    assert "docml needs Python 3.11: found no python3.11" in done.stderr


def test_with_another_python(folder: Path) -> None:
    old = executable(folder / "python3.9", 'case "$1" in --version) echo "Python 3.9.2";; *) exit 1;; esac')
    done = make(folder, "demo", f"PYTHON={old}")
    assert done.returncode != 0
    assert f"docml needs Python 3.11: {old} is Python 3.9.2" in done.stderr


def test_with_a_python_without_venv(folder: Path) -> None:
    bare = executable(folder / "python3.11", 'case "$1" in -c) exit 0;; *) exit 1;; esac')
    done = make(folder, "test", f"PYTHON={bare}")
    assert done.returncode != 0
    assert "could not make a virtual environment (Debian: apt-get install python3-venv)" in done.stderr
    assert not (folder / ".venv").exists()


def test_an_index_of_cpu_builds_is_passed_to_pip(folder: Path) -> None:
    with_index = make(folder, "-n", "demo", "TORCH_INDEX=https://torch.example/cpu").stdout
    assert "--extra-index-url https://torch.example/cpu --constraint constraints.txt" in with_index
    assert "extra-index-url" not in make(folder, "-n", "demo").stdout


def test_the_demo_installs_less_than_the_tests(folder: Path) -> None:
    assert "'.[demo]'" in make(folder, "-n", "demo").stdout
    assert "'.[dev]'" in make(folder, "-n", "test").stdout
    # once the tests' packages are there, the demo keeps them up to date instead of falling behind them
    (folder / ".venv").mkdir()
    (folder / ".venv" / ".dev").touch()
    assert "'.[dev]'" in make(folder, "-n", "demo").stdout
