"""README and docs: every command exists, those of `docml` run in the order they are shown, every link leads somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
DOCML = Path(sys.executable).parent / "docml"


def commands(page: Path) -> list[list[str]]:
    """Words of each line of the blocks marked `sh`."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [line.split() for block in blocks for line in block.splitlines() if line.strip()]


def split_variables(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """`NAME=value docml …` -> the variables and the command."""
    count = next(index for index, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
    return dict(word.split("=", 1) for word in words[:count]), words[count:]


def page_id(page: Path) -> str:
    return page.name


def test_every_command_is_one_of_make_or_docml() -> None:
    shown = commands(README)
    assert {"demo", "ui", "test", "bench"} <= {words[1] for words in shown if words[0] == "make"}
    assert {split_variables(words)[1][0] for words in shown} == {"make", "docml"}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_make_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = {words[1] for words in commands(page) if words[0] == "make"} | set(re.findall(r"`make ([a-z-]+)", text))
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"make {target}: {done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_docml_sub_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    names = set(re.findall(r"^docml ([a-z]+)", blocks, flags=re.MULTILINE)) | set(re.findall(r"`docml ([a-z]+)", text))
    for name in names:
        done = subprocess.run([str(DOCML), name, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"docml {name}: {done.stderr}"


def test_docml_commands_run_as_they_are_shown(tmp_path: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("DOCML_", "DAGSTER_"))}
    ran = [split_variables(words) for words in commands(README) if words[0] != "make"]
    sub_commands = {words[1] for _, words in ran}
    assert sub_commands == {"new", "validate", "run", "runs", "report", "compare", "labels", "image", "gc"}
    for variables, words in ran:
        done = subprocess.run(
            [str(DOCML), *words[1:]],
            cwd=tmp_path,
            env={**clean, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert missing == []


def test_the_scores_shown_are_of_the_bundled_experiment() -> None:
    text = README.read_text(encoding="utf-8")
    settings = (ROOT / "experiments/EXP-1-state-of-the-union/settings.ini").read_text(encoding="utf-8")
    models = re.search(r"^MODEL_NAMES = (.+)$", settings, flags=re.MULTILINE)
    assert models is not None
    output = text.split("make demo\n```", 1)[1].split("make ui", 1)[0]
    assert all(name in output for name in models[1].split(", "))
    assert "report.html" in output
