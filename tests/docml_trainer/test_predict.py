"""`predict` in parts: what one attempt finished the next one keeps, hosts share the documents, each document is there once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from docml_contract import names
from docml_contract.jobs import Compute, JobSpec, PredictTask
from docml_contract.manifests import sha256_file
from docml_trainer import predict
from tests.docml_trainer.inferences import Positional, bert
from tests.docml_trainer.jobfolder import JobFolder
from tests.docml_trainer.test_serve import deployment_folder

DOCUMENTS = 7


class Killed(Exception):
    """Stands for the end of the machine."""


def prediction(base: Path, hosts: tuple[str, list[str]] | None = None) -> JobFolder:
    """The folder of a prediction of seven documents, of which one is a riddle and one is empty."""
    job = JobFolder(base, "predict")
    folder = deployment_folder(job.channel("deployment") / "new", Positional(bert()))
    for path in folder.iterdir():
        path.rename(job.channel("deployment") / path.name)
    folder.rmdir()
    rows = []
    for number in range(DOCUMENTS):
        words = ["encodefails"] if number == 3 else ["word" * (1 + number + place) for place in range(number)]
        path = job.channel("documents") / f"doc-{number}" / "words.json"
        path.parent.mkdir()
        path.write_text(json.dumps(words))
        rows.append(
            {"artifact_guid": f"doc-{number}", "label": "", "file": "words.json", "path": f"doc-{number}/words.json"}
        )
    table = pa.Table.from_pylist(rows).append_column("group", pa.nulls(len(rows), pa.string()))
    task = PredictTask(manifest_sha256=sha256_file(job.channel("deployment") / names.MANIFEST), processes=1)
    spec = JobSpec(
        kind="processing",
        experiment="EXP-1",
        run=3,
        step="prediction",
        piece="0" * 16,
        task=task,
        channels=(),
        compute=Compute(instance_type="local"),
    )
    job.write_spec(spec)
    pq.write_table(table, job.channel("spec") / names.ARTIFACTS_TABLE)
    if hosts:
        job.write_hosts(*hosts)
    return job


def rows(job: JobFolder, host: int = 0) -> dict[str, dict[str, Any]]:
    found = pq.read_table(job.output / names.PREDICTION_PARTS / f"{host}.parquet").to_pylist()
    by_guid = {row["artifact_guid"]: row for row in found}
    assert len(found) == len(by_guid)
    return by_guid


def test_a_killed_prediction_keeps_its_finished_parts_and_hosts_share_the_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = prediction(tmp_path / "whole")
    predict.main(whole.folders)
    expected = rows(whole)
    assert expected.keys() == {f"doc-{number}" for number in range(DOCUMENTS)}
    assert "a riddle" in expected["doc-3"]["error"]
    assert expected["doc-0"]["error"] == predict.LEFT_OUT
    assert whole.result().facts == {"documents": DOCUMENTS, "errors": 2}

    monkeypatch.setattr(predict, "PART_DOCUMENTS", 4)
    killed = prediction(tmp_path / "killed")
    add = predict.FinishedParts.add

    def add_and_die(parts: predict.FinishedParts, first: int, table: pa.Table) -> None:
        add(parts, first, table)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(predict.FinishedParts, "add", add_and_die)
        with pytest.raises(Killed):
            predict.main(killed.folders)
    (part,) = killed.folders.checkpoints.glob("*.parquet")
    (killed.folders.checkpoints / "part-0-000000099.parquet").write_bytes(b"half a file")
    before = part.stat().st_mtime_ns
    capsys.readouterr()
    predict.main(killed.folders)
    assert "4 of 7 documents were predicted by an earlier attempt" in capsys.readouterr().out
    assert part.stat().st_mtime_ns == before
    assert_alike(rows(killed), expected)

    shared: dict[str, dict[str, Any]] = {}
    for index, host in enumerate(("algo-1", "algo-2")):
        job = prediction(tmp_path / host, (host, ["algo-1", "algo-2"]))
        predict.main(job.folders)
        assert (job.output / names.OUTPUT).exists() == (index == 0)
        assert not shared.keys() & rows(job, index).keys()
        shared |= rows(job, index)
    assert_alike(shared, expected)


def assert_alike(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    assert found.keys() == expected.keys()
    for guid, row in expected.items():
        exact = ("prediction", "accepted", "error", "tokens")
        assert {key: found[guid][key] for key in exact} == {key: row[key] for key in exact}
        if row["error"] is None:
            assert np.abs(np.array(found[guid]["probabilities"]) - row["probabilities"]).max() < 1e-5
