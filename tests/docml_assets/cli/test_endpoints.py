"""docml deploy, endpoints and undeploy, on this machine and on the local SageMaker service: their answers are the report's."""

import base64
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import dagster as dg
import numpy as np
import pytest

from docml_assets.cli import main
from docml_assets.deployment import Deployment
from resources.endpoints.interface import EndpointRecord
from resources.endpoints.sagemaker import backend
from resources.jobs.sagemaker import backend as jobs_backend
from resources.store import Store
from tests.docml_assets.cli.here import REPOSITORY, Here
from tests.docml_assets.cli.test_predict import EXPERIMENT, reported, rows
from tests.docml_assets.cli.test_predict import assert_equal_to_report as assert_table_equal
from tests.resources.jobs.cloud import HURRY, IMAGE, Cloud, cloud
from tests.servers.s3 import S3Server

MOST_DOCUMENTS = 16  # of a request
# `python -m docml_trainer`, whose predictions go in parts of four documents, and whose first one is killed behind its first part.
TRAINER_CODE = """
import os, sys, time
from docml_trainer import __main__, predict

predict.PART_DOCUMENTS = 4
add = predict.FinishedParts.add

def add_and_die(parts, first, table):
    add(parts, first, table)
    if len(parts.guids) == table.num_rows:
        time.sleep(3)  # until the service has seen it
        os.kill(os.getpid(), 9)

predict.FinishedParts.add = add_and_die
sys.exit(__main__.main(sys.argv[1:]))
"""
TRAINER = (sys.executable, "-c", TRAINER_CODE)
NAMES = {model: f"1-{EXPERIMENT}-{model}" for model in ("bag", "fixed")}


def docml(*arguments: str) -> int:
    """The exit code of a command, run in this process."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def here(used: Here, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """The finished run, with commands in this process."""
    monkeypatch.chdir(used.root)
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, used.environment[name])
    monkeypatch.setenv("DAGSTER_HOME", str(used.root / ".dagster_home"))
    yield used
    endpoints = Deployment.current().endpoints
    for record in list(endpoints.records):
        endpoints.remove(record)


def documents(here: Here, guids: list[str]) -> bytes:
    """A request with documents as production has them: text where it is text, bytes as base64."""
    asked = [{"artifact_guid": guid, "files": {}} for guid in guids]
    for document in asked:
        for path in sorted((here.production / str(document["artifact_guid"])).iterdir()):
            content = path.read_bytes()
            is_text = path.suffix == ".json"
            document["files"][path.name] = (  # type: ignore[index]
                content.decode() if is_text else {"base64": base64.b64encode(content).decode()}
            )
    return json.dumps(asked).encode()


def assert_equal_to_report(here: Here, model: str, invoke: Any) -> None:
    """All test documents: the same label, probabilities within 1e-4."""
    expected = reported(here, model)
    guids = sorted(expected)
    answers = [
        answer
        for start in range(0, len(guids), MOST_DOCUMENTS)
        for answer in json.loads(invoke(documents(here, guids[start : start + MOST_DOCUMENTS])))
    ]
    assert len(answers) == len(guids) > 10
    for guid, answer in zip(guids, answers, strict=True):
        label, probabilities = expected[guid]
        assert answer["label"] == label
        assert np.abs(np.array(list(answer["probabilities"].values())) - probabilities).max() < 1e-4
        assert (answer["experiment"], answer["run"], answer["model"]) == (here.experiment, 1, model)


def post(url: str, body: bytes) -> bytes:
    with urlopen(Request(url, body, {"content-type": "application/json"})) as response:
        return bytes(response.read())


def instance(here: Here) -> dg.DagsterInstance:
    return dg.DagsterInstance.from_config(str(here.root / ".dagster_home"))


def test_on_this_machine(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    assert docml("deploy", EXPERIMENT, "1", "--model", "fixed", "--alias", "live", "--expire", "2") == 0
    said = capsys.readouterr().out
    assert f"{NAMES['fixed']}: up" in said
    assert "live: up" in said
    assert "0 USD an hour" in said
    record = EndpointRecord.from_bytes(
        (here.root / f"storage/{EXPERIMENT}/endpoints/live.json").read_bytes(), "live.json"
    )
    assert record.spec.alias
    assert record.checked_documents == len(reported(here, "fixed"))
    endpoints = {found.name: found for found in Deployment.current().endpoints.list_endpoints()}
    assert endpoints.keys() == {NAMES["fixed"], "live"}
    state = endpoints["live"].state
    assert state is not None
    assert_equal_to_report(here, "fixed", lambda body: post(state.url, body))
    assert docml("endpoints") == 0
    shown = capsys.readouterr().out
    assert shown.count(" up ") == 2
    with instance(here) as dagster:
        key = dg.AssetKey("deployed_endpoint")
        (event,) = dagster.fetch_materializations(key, limit=1).records
        materialization = event.asset_materialization
        assert materialization is not None
        assert materialization.partition == f"{EXPERIMENT}|1"
        assert materialization.metadata["endpoint"].value == NAMES["fixed"]
        assert materialization.tags is not None
        assert {"dagster/input_data_version/best_torchscript_model", "dagster/input_data_version/inference_report"} <= (
            materialization.tags.keys()
        )
        (seen,) = dagster.fetch_observations(dg.AssetKey("production"), limit=1).records
        assert seen.asset_observation is not None
        assert seen.asset_observation.metadata["alias live"].value == "run 1, fixed"
    assert docml("undeploy", "live") == 0
    damaged = here.root / f"storage/{EXPERIMENT}/endpoints/lost.json"
    damaged.write_text("{")
    assert docml("endpoints") == 1
    shown = capsys.readouterr()
    assert shown.out.count(" up ") == 1
    assert "the record of endpoint lost cannot be read: " in shown.err
    damaged.unlink()
    assert docml("undeploy", "live") == 1
    assert f"there is no endpoint 'live'; known: {NAMES['fixed']}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["deploy", EXPERIMENT, "1"], 1, "compares bag, fixed: name one of them with --model"),
        (["deploy", EXPERIMENT, "9", "--model", "bag"], 1, "run 9 is not claimed"),
        (["deploy", EXPERIMENT, "1", "--model", "bag", "--alias", "7-live"], 1, "neither begin with a number"),
        (["deploy", EXPERIMENT, "1", "--model", "bag", "--mode", "batch"], 2, "'batch' is not one of"),
        (["deploy", EXPERIMENT, "1", "--model", "bag", "--expire", "0"], 2, "0.0 is not in the range"),
        (["undeploy", "nothing"], 1, "there is no endpoint 'nothing'; known: none"),
    ],
)
def test_what_is_wrong_is_said(
    here: Here, arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert docml(*arguments) == code
    assert expected in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def clouded(
    here: Here,
    tmp_path: Path,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cloud]:
    """The finished run in a bucket, and commands that go to SageMaker."""
    monkeypatch.setattr(backend, "CALLS_A_SECOND", 0.0)
    monkeypatch.setattr(backend, "POLL_SECONDS", 0.2)
    for name in ("calls_a_second", "log_calls_a_second", "poll_seconds", "log_settle_seconds"):
        monkeypatch.setattr(jobs_backend, name.upper(), HURRY[name])
    containers = {"PYTHONPATH": f"{REPOSITORY / 'trainer_image'}", **s3_server.environment}
    with cloud(tmp_path, s3_server, TRAINER, containers=containers) as running:
        running.store.upload(here.root / "storage" / here.experiment, here.experiment)
        for key, value in running.environment.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("DOCML_ENV", "aws")
        monkeypatch.setenv("DOCML_STORE", running.store.url)
        monkeypatch.setenv("DOCML_IMAGE", IMAGE)
        monkeypatch.setenv("DOCML_PRICES", json.dumps({"ml.m5.xlarge": 0.23}))
        yield running


def test_on_sagemaker(here: Here, clouded: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    hosting = clouded.endpoint.sagemaker.hosting
    assert hosting is not None
    assert docml("deploy", EXPERIMENT, "1", "--model", "fixed", "--dry-run") == 0
    assert '"ModelDataSource"' in capsys.readouterr().out
    assert hosting.left() == []
    assert docml("deploy", EXPERIMENT, "1", "--model", "fixed") == 0
    assert "while idle it costs 0.23 USD an hour, 166 USD a month" in " ".join(capsys.readouterr().out.split())
    endpoints = Deployment.current().endpoints
    assert_equal_to_report(here, "fixed", lambda body: endpoints.invoke(NAMES["fixed"], body))
    assert docml("endpoints") == 0
    assert "0.23" in capsys.readouterr().out
    assert docml("undeploy", NAMES["fixed"]) == 0
    assert docml("deploy", EXPERIMENT, "1", "--model", "bag", "--mode", "async") == 0
    assert "0 USD an hour once it has scaled to zero" in " ".join(capsys.readouterr().out.split())
    assert_equal_to_report(here, "bag", lambda body: endpoints.invoke(NAMES["bag"], body))
    assert docml("undeploy", NAMES["bag"]) == 0
    tampered = f"{EXPERIMENT}/run_1/deployment/bag"
    store = Store.open(clouded.store.url, environment=clouded.environment)
    store.put(f"{tampered}/user_defined_funcs.py", store.get(f"{tampered}/user_defined_funcs.py") + b"\n")
    assert docml("deploy", EXPERIMENT, "1", "--model", "bag") == 1
    assert "user_defined_funcs.py" in capsys.readouterr().err
    assert hosting.left() == []


def test_champions_are_mirrored_in_the_model_registry(
    here: Here, clouded: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCML_MODEL_REGISTRY", "sagemaker")
    promote = ("promote", EXPERIMENT, "1", "--model")
    registry = clouded.endpoint.sagemaker.registry

    def approved() -> dict[str, str]:
        found = registry.approvals(f"docml-{EXPERIMENT}")
        return {said.split(", ")[1].split(";")[0]: approval for said, approval in found.items()}

    clouded.faults.order("CreateModelPackage", "denied")
    assert docml(*promote, "bag") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "run 1, bag is the champion of EXP-7-words, but SageMaker Model Registry does not say so: " in said
    assert "To bring it up to date: docml promote EXP-7-words 1 --model bag" in said
    assert approved() == {}
    assert docml(*promote, "bag") == 1  # it is the champion already
    assert approved() == {"bag": "Approved"}
    assert docml(*promote, "fixed", "--force", "why not") == 0
    assert "SageMaker Model Registry: arn:aws:sagemaker:" in capsys.readouterr().out
    assert approved() == {"bag": "Rejected", "fixed": "Approved"}
    assert docml("rollback", EXPERIMENT) == 0
    assert approved() == {"bag": "Approved", "fixed": "Rejected"}
    monkeypatch.setenv("DOCML_MODEL_REGISTRY", "mlflow")
    assert docml("rollback", EXPERIMENT) == 1
    assert "expected none or sagemaker" in capsys.readouterr().err


@pytest.mark.slow
def test_a_prediction_on_sagemaker_keeps_the_parts_that_a_killed_one_finished(
    here: Here, clouded: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guids = sorted(reported(here, "bag"))
    for guid in guids:
        shutil.copytree(here.production / guid, tmp_path / "new" / guid)
    out = tmp_path / "answers.parquet"
    asked = ("predict", EXPERIMENT, "1", "--model", "bag", "--files", str(tmp_path / "new"), "--out", str(out), "-v")
    assert docml(*asked) == 1
    assert "exit code: -9" in capsys.readouterr().err
    assert docml(*asked) == 0
    assert f"4 of {len(guids)} documents were predicted by an earlier attempt" in capsys.readouterr().out
    found = rows(out)
    assert found.keys() == set(guids)
    assert_table_equal(found, here, "bag")
    assert len(clouded.calls("CreateProcessingJob")) == 2
