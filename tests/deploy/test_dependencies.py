"""deploy/dependencies.py: what is installed, with its licences, and as CycloneDX."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "dependencies.py"


def said(what: str) -> str:
    return subprocess.run([sys.executable, str(SCRIPT), what], capture_output=True, text=True, check=True).stdout


def test_every_distribution_has_a_licence_line() -> None:
    lines = dict(line.split("\t") for line in said("licences").splitlines())
    assert lines[f"pydantic=={version('pydantic')}"] == "MIT"
    assert lines[f"dagster=={version('dagster')}"].startswith("Apache")
    undeclared = {line.partition("==")[0] for line, licence in lines.items() if licence == "not declared"}
    assert len(undeclared) < 20, undeclared


def test_the_sbom_names_every_distribution_once() -> None:
    bom = json.loads(said("sbom"))
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    references = [part["bom-ref"] for part in bom["components"]]
    assert len(references) == len(set(references)) > 100
    assert f"pkg:pypi/pydantic@{version('pydantic')}" in references
    assert all(part["licenses"][0]["license"]["name"] for part in bom["components"])


def test_anything_else_is_a_usage_error() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "sbmo"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "found 'sbmo'; expected licences or sbom\n")
