"""Whoever is asked answers as the report did, whatever the model: docml predict, docml serve, an endpoint of this machine and one on SageMaker,
on all test documents. Longformer (one shape), pages with pictures, a decoder, pictures alone, chunks; and from the run of `make demo` the
commands of docs/using-a-model.md.

A model with process_func and one of one shape go the same ways in test_predict.py and test_endpoints.py, under `make test`.
"""

import csv
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from docml_assets.deployment import Deployment
from resources.endpoints.interface import endpoint_name
from tests.docml_assets.cli.here import REPOSITORY, Here
from tests.docml_assets.cli.test_endpoints import assert_equal_to_report as assert_answers_equal
from tests.docml_assets.cli.test_endpoints import clouded as clouded
from tests.docml_assets.cli.test_endpoints import docml, post
from tests.docml_assets.cli.test_endpoints import here as here
from tests.docml_assets.cli.test_predict import assert_equal_to_report, reported, rows, serving
from tests.docs.test_document_models import EXPERIMENTS, document, read_experiment
from tests.resources.jobs.cloud import Cloud

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # whoever comes first waits for a whole run
DEMO = "EXP-1-state-of-the-union"
DOCUMENTS = 60
TEST_SHARE = "SPLIT = 0.5, 0.2, 0.3"


@pytest.fixture(scope="module", params=[*EXPERIMENTS, DEMO])
def used(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Here:
    """A folder whose run 1 is finished: an experiment of docs/document-models with tiny weights, or what `make demo` leaves."""
    root = tmp_path_factory.mktemp("answers")
    if request.param == DEMO:
        here = Here(root, DEMO, REPOSITORY / "experiments" / DEMO)
    else:
        here = document_model(root, request.param)
    assert "macro-F1" in here.docml("run", here.experiment)
    return here


def document_model(root: Path, name: str) -> Here:
    """An experiment of docs/document-models, with documents of its own."""
    settings, functions = read_experiment(name, root / "weights")
    folder = shutil.copytree(REPOSITORY / "docs/document-models" / name, root / "content")
    text = (folder / "settings.ini").read_text().replace("[settings]\n", f"[settings]\n{TEST_SHARE}\n", 1)
    (folder / "settings.ini").write_text(re.sub(r"(?m)^epochs = .*$", "epochs = 1", text))
    (folder / "user_defined_funcs.py").write_text(functions)
    here = Here(root, f"EXP-8-{name}", folder)
    here.production = root / "production"
    here.environment["DOCML_PRODUCTION_FILES"] = str(here.production)
    here.environment["DOCML_LABELS_URL"] = f"sqlite:///{root / 'labels.sqlite'}"
    with closing(sqlite3.connect(root / "labels.sqlite")) as database, database:
        database.execute("CREATE TABLE document_labels (artifact_guid TEXT, label TEXT, sha256 TEXT)")
        for number in range(DOCUMENTS):
            made = document(number)
            database.execute("INSERT INTO document_labels VALUES (?, ?, ?)", (made.guid, made.label, str(number)))
            for file, content in made.contents().items():
                if any(Path(file).match(entry) for entry in settings.files_from_prod):
                    path = here.production / made.guid / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
    return here


def models(here: Here) -> list[str]:
    """Of the run."""
    return sorted(path.name for path in (here.root / f"storage/{here.experiment}/run_1/deployment").iterdir())


def test_predict(used: Here, tmp_path: Path) -> None:
    for model in models(used):
        test = reported(used, model)
        assert len(test) > 10
        for guid in test:
            shutil.copytree(used.production / guid, tmp_path / "new" / guid, dirs_exist_ok=True)
        out = tmp_path / f"{model}.parquet"
        asked = ("predict", used.experiment, "1", "--model", model, "--files", str(tmp_path / "new"))
        used.docml(*asked, "--out", str(out))
        found = rows(out)
        assert found.keys() == test.keys()
        assert_equal_to_report(found, used, model)


def test_serve(used: Here) -> None:
    for model in models(used):
        with serving(used, model) as url:
            assert_answers_equal(used, model, lambda body, url=url: post(f"{url}/invocations", body))


def test_an_endpoint_of_this_machine(here: Here) -> None:
    for model in models(here):
        assert docml("deploy", here.experiment, "1", "--model", model) == 0
        name = endpoint_name(1, here.experiment, model)
        assert_answers_equal(here, model, answers_of(name))
        assert docml("undeploy", name) == 0


@pytest.mark.parametrize("mode", ["realtime", "async"])
def test_an_endpoint_on_sagemaker(here: Here, clouded: Cloud, mode: str) -> None:
    hosting = clouded.endpoint.sagemaker.hosting
    assert hosting is not None
    for model in models(here):
        assert docml("deploy", here.experiment, "1", "--model", model, "--mode", mode) == 0
        name = endpoint_name(1, here.experiment, model)
        assert_answers_equal(here, model, answers_of(name))
        assert docml("undeploy", name) == 0
    assert hosting.left() == []


def answers_of(name: str) -> Any:
    """Asks the endpoint."""
    endpoints = Deployment.current().endpoints
    return lambda body: endpoints.invoke(name, body)


@pytest.mark.parametrize("used", [DEMO], indirect=True)
def test_the_commands_of_the_documentation_from_the_state_of_make_demo(used: Here) -> None:
    page = (REPOSITORY / "docs/using-a-model.md").read_text(encoding="utf-8")
    shown = page.split("From the state that `make demo` leaves")[1]
    (commands, *_) = re.findall(r"```sh\n(.*?)```", shown, re.DOTALL)
    assert len(commands.splitlines()) == 3
    environment = used.environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", commands], cwd=used.root, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, "no answer for letter-2" in done.stdout) == (1, True), done.stdout + done.stderr
    with (used.root / "answers.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["artifact_guid"], bool(row["prediction"]), bool(row["error"])) for row in found] == [
        ("letter-1", True, False),
        ("letter-2", False, True),
    ]
    assert "raw_text.json: the document has no such file" in found[1]["error"]
