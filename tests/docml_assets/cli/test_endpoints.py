"""docml deploy, endpoints and undeploy, on this machine and on the local SageMaker service: their answers are the report's."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import dagster as dg
import numpy as np
import pytest

from docml_assets.cli import main
from docml_assets.deployment import SAMPLE, Deployment
from resources.endpoints.interface import EndpointRecord
from resources.endpoints.sagemaker import backend
from resources.store import Store
from tests.docml_assets.cli.here import REPOSITORY, Here
from tests.docml_assets.cli.test_predict import EXPERIMENT, reported
from tests.resources.jobs.cloud import IMAGE, Cloud, cloud
from tests.servers.s3 import S3Server

NAMES = {model: f"1-{EXPERIMENT}-{model}" for model in ("bag", "fixed")}
pytestmark = pytest.mark.timeout(900)  # whoever comes first waits for a whole run


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
    for record in list(endpoints.records()):
        endpoints.remove(record)


def documents(guids: list[str]) -> bytes:
    """A request with documents of the sample, as production has them."""
    files = {guid: (SAMPLE / "artifacts" / guid / "raw_text.json").read_text() for guid in guids}
    return json.dumps([{"artifact_guid": g, "files": {"raw_text.json": text}} for g, text in files.items()]).encode()


def assert_equal_to_report(here: Here, model: str, invoke: Any) -> None:
    """All test documents: the same label, probabilities within 1e-4."""
    expected = reported(here, model)
    guids = sorted(expected)
    answers = json.loads(invoke(documents(guids)))
    assert len(answers) == len(guids) > 10
    for guid, answer in zip(guids, answers, strict=True):
        label, probabilities = expected[guid]
        assert answer["label"] == label
        assert np.abs(np.array(list(answer["probabilities"].values())) - probabilities).max() < 1e-4
        assert (answer["experiment"], answer["run"], answer["model"]) == (EXPERIMENT, 1, model)


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
def clouded(here: Here, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """The finished run in a bucket, and commands that go to SageMaker."""
    monkeypatch.setattr(backend, "CALLS_A_SECOND", 0.0)
    monkeypatch.setattr(backend, "POLL_SECONDS", 0.2)
    containers = {"PYTHONPATH": f"{REPOSITORY / 'trainer_image'}", **s3_server.environment}
    with cloud(tmp_path, s3_server, (sys.executable, "-m", "docml_trainer"), containers=containers) as running:
        running.store.upload(here.root / "storage" / EXPERIMENT, EXPERIMENT)
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
    tampered = f"{EXPERIMENT}/run_1/deployment/bag"
    store = Store.open(clouded.store.url, environment=clouded.environment)
    store.put(f"{tampered}/user_defined_funcs.py", store.get(f"{tampered}/user_defined_funcs.py") + b"\n")
    assert docml("deploy", EXPERIMENT, "1", "--model", "bag") == 1
    assert "user_defined_funcs.py" in capsys.readouterr().err
    assert hosting.left() == []
