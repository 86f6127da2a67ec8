"""docml predict and serve as a person calls them: the report's answers on its own documents, errors as rows, nothing twice; and the examples
of docs/using-a-model.md.
"""

import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import pyarrow.parquet as pq
import pytest

from docml_assets.cli import main
from docml_assets.cli.labels import write_csv
from docml_assets.cli.predict import write_table
from docml_assets.deployment import SAMPLE
from docml_assets.errors import DocmlError
from docml_assets.steps.prediction import SCHEMA, PredictionResult
from docml_contract.policy import Policy
from tests.docml_assets.cli.here import DOCML, REPOSITORY, Here

EXPERIMENT = "EXP-7-words"


def rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a table by GUID, each once."""
    found = pq.read_table(path).to_pylist()
    by_guid = {row["artifact_guid"]: row for row in found}
    assert len(by_guid) == len(found)
    return by_guid


def reported(here: Here, model: str) -> dict[str, tuple[str, list[float]]]:
    """GUID -> label and probabilities of the report's test documents."""
    run = here.root / f"storage/{here.experiment}/run_1"
    said = rows(run / "inference/predictions.parquet")
    probabilities: dict[str, dict[str, Any]] = {}  # from the inference's job, or those of the trainings
    for documents in run.glob("jobs/*/output/**/documents.parquet"):
        for guid, row in rows(documents).items():
            probabilities.setdefault(guid, {}).update(row)
    return {
        guid: (row[f"{model}_prediction"], probabilities[guid][f"{model}_probabilities"]) for guid, row in said.items()
    }


def decided(here: Here, model: str) -> Policy:
    """The decision policy of the run's deployment folder."""
    path = here.root / f"storage/{EXPERIMENT}/run_1/deployment/{model}/policy.json"
    return Policy.from_bytes(path.read_bytes(), str(path))


def documents(folder: Path, guids: list[str], **texts: str) -> Path:
    """`<guid>/raw_text.json`: documents of the sample, and texts of one's own."""
    for guid in guids:
        shutil.copytree(SAMPLE / "artifacts" / guid, folder / guid)
    for guid, text in texts.items():
        (folder / guid).mkdir(parents=True)
        (folder / guid / "raw_text.json").write_text(json.dumps({"text": text}))
    return folder


def assert_equal_to_report(found: dict[str, dict[str, Any]], here: Here, model: str) -> None:
    for guid, (label, probabilities) in reported(here, model).items():
        assert found[guid]["prediction"] == label
        assert np.abs(np.array(found[guid]["probabilities"]) - probabilities).max() < 1e-4
        assert found[guid]["probability"] == pytest.approx(max(probabilities), abs=1e-4)


def test_the_reports_answers_on_its_own_documents_and_errors_as_rows(used: Here, tmp_path: Path) -> None:
    test = sorted(reported(used, "bag"))
    folder = documents(
        tmp_path / "new", test, fails="PROCESSFAILS", riddle="EncodeFails", empty="", other="some words of any kind"
    )
    (folder / "lacking").mkdir()
    (folder / "lacking" / "other.txt").write_text("nothing of use")
    jobs = used.jobs(1)
    said = used.docml(
        "predict", EXPERIMENT, "1", "--model", "bag", "--files", str(folder), "--out", str(tmp_path / "t.parquet")
    )
    found = rows(tmp_path / "t.parquet")
    assert found.keys() == {*test, "fails", "riddle", "empty", "other", "lacking"}
    assert_equal_to_report(found, used, "bag")
    errors = {guid: row["error"] for guid, row in found.items() if row["error"]}
    assert errors.keys() == {"fails", "riddle", "empty", "lacking"}
    assert "no words today" in errors["fails"]
    assert "this document is a riddle (user_defined_funcs.py, line " in errors["riddle"]
    assert "returned None" in errors["empty"]
    assert "raw_text.json: the document has no such file" in errors["lacking"]
    policy = decided(used, "bag")
    assert policy.holds
    assert {guid for guid in test if found[guid]["accepted"]} == {
        guid for guid, (_, said) in reported(used, "bag").items() if policy.accepts(np.array(said))
    }
    assert all((row["accepted"] is None) == (row["error"] is not None) for row in found.values())
    assert found["other"]["tokens"] == 5
    assert len(used.jobs(1)) == len(jobs) + 1
    again = used.docml(
        "predict", EXPERIMENT, "1", "--model", "bag", "--files", str(folder), "--out", str(tmp_path / "t.json")
    )
    assert "no job was launched" in again
    assert len(used.jobs(1)) == len(jobs) + 1
    assert said.split("Predictions: ")[1].split()[0] == again.split("Predictions: ")[1].split()[0]
    written = {row["artifact_guid"]: row for row in json.loads((tmp_path / "t.json").read_text())}
    best = max(written["other"]["probabilities"].items(), key=lambda item: item[1])
    assert best == (written["other"]["prediction"], written["other"]["probability"])
    (left,) = (used.root / f"storage/{EXPERIMENT}/run_1/predictions").iterdir()
    assert {path.name for path in left.iterdir()} == {"predictions.parquet", "documents.parquet", "MANIFEST.json"}


def test_a_model_of_one_shape_on_documents_that_a_query_names(used: Here, tmp_path: Path) -> None:
    test = sorted(reported(used, "fixed"))
    listed = ", ".join(f"'{guid}'" for guid in test)
    query = f"SELECT artifact_guid FROM document_labels WHERE artifact_guid IN ({listed})"
    out = tmp_path / "t.parquet"
    used.docml("predict", EXPERIMENT, "1", "--model", "fixed", "--query", query, "--out", str(out))
    assert_equal_to_report(rows(out), used, "fixed")


def test_a_flat_folder_holds_a_document_a_file(used: Here, tmp_path: Path) -> None:
    for name in ("first.json", "second.json"):
        (tmp_path / name).write_text(json.dumps({"text": f"the {name} letter"}))
    (tmp_path / "README.txt").write_text("no document")
    out = tmp_path / "out" / "t.csv"
    said = used.docml("predict", EXPERIMENT, "1", "--model", "bag", "--files", str(tmp_path), "--out", str(out))
    assert "1 files are not input of the model" in said
    lines = out.read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["artifact_guid", "first.json", "second.json"]


@pytest.mark.parametrize(
    ("arguments", "expected", "code"),
    [
        (["1", "--files", "."], "compares bag, fixed: name one of them with --model", 1),
        (["1", "--model", "bag", "--files", "."], "found no documents; expected <guid>/<file>", 1),
        (["7", "--model", "bag", "--files", "."], "run 7 is not claimed", 1),
        (["1", "--model", "bag"], "expected --files or --query", 2),
        (["1", "--model", "bag", "--files", "x", "--out", "t.xlsx"], "ends in .parquet, .csv, .json", 2),
        (["1", "--model", "bag", "--query", "SELECT label FROM document_labels"], "expected a column artifact_guid", 1),
    ],
)
def test_what_is_wrong_is_said_in_one_message(
    used: Here,
    tmp_path: Path,
    arguments: list[str],
    expected: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCML_STORE", str(used.root / "storage"))
    monkeypatch.setenv("DAGSTER_HOME", str(used.root / "another home"))
    with pytest.raises(SystemExit) as end:
        main(["predict", EXPERIMENT, *arguments])
    assert (end.value.code, expected in capsys.readouterr().err) == (code, True)


def test_more_errors_than_allowed_end_with_1_and_keep_the_table(used: Here, tmp_path: Path) -> None:
    folder = documents(tmp_path / "new", [], one="PROCESSFAILS", two="PROCESSFAILS as well")
    said = used.docml(
        "predict",
        EXPERIMENT,
        "1",
        "--model",
        "bag",
        "--files",
        str(folder),
        "--out",
        str(tmp_path / "t.parquet"),
        code=1,
    )
    assert "2 of 2 documents have no answer, more than MAX_FAILED_SHARE = 0.5 allows" in said
    assert rows(tmp_path / "t.parquet").keys() == {"one", "two"}


def test_a_table_that_cannot_be_written_is_said_and_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    result = PredictionResult("run_1/predictions/a", None, SCHEMA.empty_table(), ())  # type: ignore[arg-type]
    with pytest.raises(DocmlError, match=r"t\.csv cannot be written \(.*the table is kept in run_1/predictions/a"):
        write_table(result, tmp_path / "file" / "t.csv")


# --- docml labels, which needs a finished run and classified documents as well


def test_labels_that_look_wrong_are_shown_and_exported(used: Here) -> None:
    written = used.docml("labels", EXPERIMENT, "1", "--suspects", "--format", "csv")
    found = list(csv.DictReader(io.StringIO(written)))
    labelled = used.root / f"storage/{EXPERIMENT}/run_1/reconciliation/label_rows.parquet"
    given = {guid: row["label"] for guid, row in rows(labelled).items()}
    assert found
    assert all(given[row["artifact_guid"]] == row["label"] != row["likely_label"] for row in found)
    assert all(given[row["nearest_likely"]] == row["likely_label"] for row in found)
    assert all(len(row["excerpt"]) > 100 for row in found)
    confidence = [float(row["confidence"]) for row in found]
    assert confidence == sorted(confidence)
    assert all(row["bag"] for row in found if row["split"] == "test")
    shown = used.docml("labels", EXPERIMENT, "1")
    assert "Labels that look wrong" in shown
    assert found[0]["artifact_guid"] in "".join(shown.split())


def test_without_a_suspect_there_is_a_header(capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(["artifact_guid", "label"], [])
    assert capsys.readouterr().out == "artifact_guid,label\n"


def test_no_text_is_a_formula_to_a_spreadsheet(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    formulas = ("=HYPERLINK(1)", "+cmd|x", "-2+3", "@SUM(1)", "\tx")
    write_csv(["text", "margin"], [{"text": text, "margin": -0.5} for text in (*formulas, "-2", "a=b")])
    cells = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [cell["text"] for cell in cells] == [*(f"'{text}" for text in formulas), "-2", "a=b"]
    assert {cell["margin"] for cell in cells} == {"-0.5"}
    row = {"artifact_guid": "=1+1", "prediction": "-other", "probability": 0.5, "probabilities": [1.0]}
    table = SCHEMA.empty_table().from_pylist([row], schema=SCHEMA)
    write_table(PredictionResult("x", None, table, ("-other",)), tmp_path / "t.csv")  # type: ignore[arg-type]
    (written,) = csv.DictReader((tmp_path / "t.csv").read_text().splitlines())
    assert (written["artifact_guid"], written["prediction"], written["probability"]) == ("'=1+1", "'-other", "0.5")


def test_what_to_label_next_is_chosen_among_classified_documents(used: Here, tmp_path: Path) -> None:
    texts = {f"new-{number}": f"some words {number} of peace and war and trade" for number in range(4)}
    folder = documents(tmp_path / "new", [sorted(reported(used, "bag"))[0]], **texts)
    used.docml("predict", EXPERIMENT, "1", "--model", "bag", "--files", str(folder))
    tasks = json.loads(used.docml("labels", EXPERIMENT, "1", "--next", "3", "--format", "label-studio"))
    assert len(tasks) == 3
    assert not {task["data"]["artifact_guid"] for task in tasks} & set(reported(used, "bag"))  # these have a label
    assert "Documents to label next" in used.docml("labels", EXPERIMENT, "1", "--next", "2")


@contextmanager
def serving(here: Here, model: str) -> Iterator[str]:
    """The URL of a `docml serve` with the model."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [*DOCML, "serve", here.experiment, "1", "--model", model, "--port", str(port)]
    with (here.root / "serve.log").open("w") as log:
        process = subprocess.Popen(command, cwd=here.root, env=here.environment, stdout=log, stderr=log)
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 200
        while not _answers(f"{base}/ping"):
            assert process.poll() is None, (here.root / "serve.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield base
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def url(used: Here) -> Iterator[str]:
    """Of a server with the model `fixed`."""
    with serving(used, "fixed") as base:
        yield base


def _answers(url: str) -> bool:
    try:
        with urlopen(url) as response:
            return bool(response.status == 200)
    except URLError:
        return False


def test_it_answers_as_the_report_did(used: Here, url: str) -> None:
    expected = reported(used, "fixed")
    guids = sorted(expected)
    documents = [
        {"artifact_guid": guid, "files": {"raw_text.json": (SAMPLE / "artifacts" / guid / "raw_text.json").read_text()}}
        for guid in guids
    ]
    request = Request(f"{url}/invocations", json.dumps(documents).encode(), {"content-type": "application/json"})
    with urlopen(request) as response:
        answers = json.load(response)
    for guid, answer in zip(guids, answers, strict=True):
        label, probabilities = expected[guid]
        assert answer["label"] == label
        assert answer["accepted"] is bool(decided(used, "fixed").accepts(np.array(probabilities)))
        assert np.abs(np.array(list(answer["probabilities"].values())) - probabilities).max() < 1e-4


def test_the_examples_of_the_documentation(url: str, tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/using-a-model.md").read_text(encoding="utf-8").replace("http://127.0.0.1:8080", url)
    (curl,) = re.findall(r"```sh\n(curl .*?)```", text, re.DOTALL)
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "raw_text.json").write_text(json.dumps({"text": "a letter about nothing"}))
    said = subprocess.run(["sh", "-c", curl], cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ)
    assert json.loads(said.stdout).keys() >= {"label", "probability", "run", "model"}
    done = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, capture_output=True, text=True, check=True)
    label, probability = done.stdout.split()
    assert label
    assert 0 < float(probability) <= 1
