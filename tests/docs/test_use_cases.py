"""docs/use-cases.md: its functions do what it says, and its plug-in package is built, installed into a folder of its own, and used."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from docml_assets.experiment.functions import check_module
from docml_assets.experiment.use_case import PARAMETERS, UseCase
from docml_assets.reconcile.findings import ReconciliationFindings
from docml_assets.reconcile.process import open_use_case
from docml_assets.reconcile.use_case import UseCaseAtWork
from tests.docml_assets.cli.here import DOCML, REPOSITORY
from tests.docml_assets.experiment.experiments import settings_text, write_experiment


def test_the_functions_of_the_documentation_work() -> None:
    text = (REPOSITORY / "docs/use-cases.md").read_text(encoding="utf-8")
    (functions,) = re.findall(r"```python\n(def labels.*?)```", text, re.DOTALL)
    assert check_module(functions, "use_case.py", PARAMETERS) == []
    case = UseCase(name="./use_case.py", text=functions)
    assert case.functions == ("combine", "files", "labels")
    table = pa.table({"artifact_guid": ["a", "b"], "label": [" Invoice", "UNKNOWN"], "file_hash": ["1", "2"]})
    labelled = UseCaseAtWork(case, os.environ).label(table, ReconciliationFindings())
    assert labelled.to_pylist() == [{"artifact_guid": "a", "label": "invoice", "file_hash": "1"}]
    with open_use_case(case.code(units=True), os.environ) as worker:
        assert worker.files([({"artifact_guid": "a"}, ["x.json", "x.tmp.json"])]) == [("x.json",)]
        units = {"a": {"page_01": [0.6, 0.4], "page_02": [0.2, 0.8]}}
        assert worker.combine(["invoice", "letter"], units) == {"a": [0.2, 0.8]}


@pytest.mark.slow  # pip builds and installs a package
def test_the_package_of_the_documentation_works(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/use-cases.md").read_text(encoding="utf-8")
    project = tmp_path / "project"
    (project / "tidy_labels").mkdir(parents=True)
    (project / "tidy_labels/__init__.py").touch()
    lines = 0
    for file, content in re.findall(r"`([\w/]+\.(?:toml|py))`:\n\n```\w+\n(.*?)```", text, re.DOTALL):
        (project / file).write_text(content)
        lines += len(content.splitlines())
    assert 20 <= lines <= 30
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(site), str(project)], check=True, capture_output=True, timeout=300)
    settings = settings_text("USE_CASE = tidy")
    query = "SELECT artifact_guid, label || '  ' AS label, sha256 AS file_hash FROM document_labels"
    settings = re.sub(r"LABELS_QUERY = .*", f"LABELS_QUERY = {query}", settings)
    write_experiment(tmp_path, settings=settings)
    environment = {**os.environ, "PYTHONPATH": str(site), "DOCML_EXPERIMENTS": str(tmp_path), "DOCML_STORE": str(site)}
    done = subprocess.run(
        [*DOCML, "validate", "EXP-1"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counted = re.search(
        r"use case: tidy of tidy-labels 1\.0 \(sha256 \w+\): rows in (\d+), rows out (\d+), artifacts relabelled (\d+)",
        " ".join(done.stdout.split()),
    )
    assert counted, done.stdout
    assert int(counted[1]) == int(counted[2]) == int(counted[3]) > 100
