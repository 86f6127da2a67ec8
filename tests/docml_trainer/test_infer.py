"""`python -m docml_trainer infer`, mostly as a real process over a real folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from docml_contract.jobs import ExportedModel, InferencePhase
from docml_contract.manifests import JobOutput, sha256_file
from docml_trainer import infer
from docml_trainer.errors import DataError, TrainerError
from docml_trainer.inference.prediction import LATENCY_DOCUMENTS, sample_rows
from tests.docml_trainer.inferences import Positional, bert, inference, one_at_a_time, table, write_model, write_spec
from tests.docml_trainer.jobfolder import JobFolder, assert_gone, children_of
from tests.docml_trainer.trainings import LABELS, split, training_job
from tests.docml_trainer.trainings import run_here as train_here


def test_predictions_do_not_depend_on_batches(tmp_path: Path) -> None:
    model = bert()
    job = inference(tmp_path, {"tiny": Positional(model)}, documents=60)
    finished = job.run()
    assert finished.returncode == 0, finished.stderr
    expected = one_at_a_time(model, split(60, seed=7))
    predictions, documents = table(job, "predictions.parquet"), table(job, "documents.parquet")
    guids = predictions["artifact_guid"].to_pylist()
    assert guids == sorted(expected)
    assert documents["artifact_guid"].to_pylist() == guids
    alone = np.stack([expected[guid] for guid in guids])
    found = np.array(documents["tiny_probabilities"].to_pylist())
    assert np.abs(found - alone).max() < 1e-5
    assert predictions["tiny_prediction"].to_pylist() == [LABELS[i] for i in alone.argmax(axis=1)]
    assert np.abs(np.array(predictions["tiny_probability"].to_pylist()) - alone.max(axis=1)).max() < 1e-5
    assert len(set(predictions["tiny_prediction"].to_pylist())) > 1  # the model does tell documents apart
    by_guid = {row["artifact_guid"]: row for row in split(60, seed=7)}
    assert documents["tiny_tokens"].to_pylist() == [len(by_guid[guid]["input_ids"]) for guid in guids]
    assert predictions["label"].to_pylist() == [LABELS[by_guid[guid]["labels"]] for guid in guids]


def test_the_validation_split_is_answered_where_a_decision_policy_is_made(tmp_path: Path) -> None:
    model = bert()
    job = inference(tmp_path, {"tiny": Positional(model)}, documents=12)
    valid = split(20, seed=9)
    valid.save_to_disk(str(job.channel("valid")))
    spec = job.folders.spec()
    job.write_spec(spec.model_copy(update={"task": spec.task.model_copy(update={"validation": True})}))
    infer.main(job.folders)
    expected = one_at_a_time(model, valid)
    rows = table(job, "validation.parquet").to_pylist()
    assert [row["artifact_guid"] for row in rows] == sorted(expected)
    for row in rows:
        assert np.abs(np.array(row["tiny_probabilities"]) - expected[row["artifact_guid"]]).max() < 1e-5
    assert table(job, "documents.parquet").num_rows == 12


def trained_job(base: Path, **task: Any) -> JobFolder:
    """A training that is to answer 25 test documents, and its validation documents."""
    job = training_job(base, inference=InferencePhase(validation=True), **task)
    split(25, seed=7).save_to_disk(str(job.channel("test")))
    return job


def answers(job: JobFolder) -> JobOutput:
    return JobOutput.from_bytes((job.output / "inference/OUTPUT.json").read_bytes(), "OUTPUT.json")


def test_a_training_answers_as_a_job_of_its_own_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, plain = trained_job(tmp_path / "training"), training_job(tmp_path / "plain")
    assert [train_here(each, monkeypatch) for each in (job, plain)] == [0, 0]
    model, expected = job.result(), plain.result()
    assert model.data_version == expected.data_version
    assert {entry.path for entry in model.files} == {entry.path for entry in expected.files}

    alone = JobFolder(tmp_path / "alone", "infer")
    for name in ("test", "valid"):
        alone.fill_channel(name, job.channel(name))
    folder = alone.channel("models") / "bag"
    folder.mkdir()
    for name in ("model.pt", "export.json"):
        shutil.copy(job.output / name, folder)
    hashes = (sha256_file(folder / name) for name in ("model.pt", "export.json"))
    write_spec(alone, {"bag": ExportedModel(path="bag", **dict(zip(EXPORTED, hashes, strict=True)))})
    spec = alone.folders.spec()
    alone.write_spec(spec.model_copy(update={"task": spec.task.model_copy(update={"validation": True})}))
    infer.main(alone.folders)
    assert answers(job).data_version == alone.result().data_version
    for name in ("predictions.parquet", "documents.parquet", "validation.parquet"):
        assert pq.read_table(job.output / "inference" / name).equals(table(alone, name))


EXPORTED = ("torchscript_sha256", "export_sha256")


def test_an_attempt_after_a_death_in_the_phase_leaves_it_out_and_trains_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job = trained_job(tmp_path)
    assert train_here(job, monkeypatch) == 0
    version = job.result().data_version
    (mark,) = job.folders.checkpoints.glob("*/inference-phase")
    for said, is_answered in (("begun", False), ("ended", True)):  # killed; stopped by SIGTERM
        mark.write_text(said)
        shutil.rmtree(job.output)
        capfd.readouterr()
        assert train_here(job, monkeypatch) == 0
        printed = capfd.readouterr().out
        assert "Resumed from step-" in printed
        assert "Epoch 1/2" not in printed
        assert job.result().data_version == version
        assert (job.output / "inference").exists() is is_answered
        assert ("left to a job of its own" in printed) is not is_answered


def test_what_goes_wrong_in_the_phase_does_not_cost_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job = trained_job(tmp_path)
    shutil.rmtree(job.channel("test"))
    assert train_here(job, monkeypatch) == 0
    assert job.result().command == "train"
    assert not (job.output / "inference").exists()
    assert "Warning: the test split is left to a job of its own: DataError" in capfd.readouterr().out


def test_output_and_timings(tmp_path: Path) -> None:
    job = inference(tmp_path, {"tiny": Positional(bert())}, documents=30)
    finished = job.run()
    output = job.result()
    timings = json.loads((job.output / "timings.json").read_text())
    assert {entry.path for entry in output.files} == {"predictions.parquet", "documents.parquet", "timings.json"}
    measured = timings["models"]["tiny"]
    assert timings["num_documents"] == output.facts["documents"] == 30
    assert measured["docs_per_second"] == output.facts["docs_per_second"]["tiny"] > 0
    assert measured["latency_ms"] > 0
    assert measured["torchscript_sha256"] == job.folders.spec().task.models["tiny"].torchscript_sha256  # type: ignore[union-attr]
    assert timings["hardware"]["cores"] >= 1
    last = finished.events("progress")[-1]
    assert (last["what"], last["done"], last["total"], last["unit"]) == ("tiny predicts", 30, 30, "documents")


def test_comparison_in_several_processes(tmp_path: Path) -> None:
    """Every model sees its own columns; processes give what one process gives, and the same data version."""
    modules: dict[str, torch.nn.Module] = {"one": Positional(bert(1)), "other": Positional(bert(2), outputs="tensor")}
    several = inference(tmp_path / "several", modules, processes=2)
    alone = inference(tmp_path / "alone", modules, processes=1)
    for job in (several, alone):
        finished = job.run()
        assert finished.returncode == 0, finished.stderr
    assert several.result().data_version == alone.result().data_version
    assert json.loads((several.output / "timings.json").read_text())["models"]["one"]["processes"] == 2
    for name in modules:
        ours, theirs = (
            np.array(table(job, "documents.parquet")[f"{name}_probabilities"].to_pylist()) for job in (several, alone)
        )
        assert np.abs(ours - theirs).max() < 1e-5
    columns = table(alone, "predictions.parquet").column_names
    assert columns == [
        "artifact_guid",
        "label",
        "one_prediction",
        "one_probability",
        "other_prediction",
        "other_probability",
    ]
    expected = one_at_a_time(modules["other"].model, split(40, seed=7, prefixes=("other_",)), "other_input_ids")  # type: ignore[arg-type]
    found = np.array(table(alone, "documents.parquet")["other_probabilities"].to_pylist())
    assert np.abs(found - np.stack([expected[guid] for guid in sorted(expected)])).max() < 1e-5


class Baked(torch.nn.Module):
    """A model whose trace holds at the traced shape only, as Longformer's does."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(80, len(LABELS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        places = (
            torch.linspace(1, 2, input_ids.shape[1]).expand(input_ids.shape[0], -1).clone()
        )  # baked in by the trace
        return {"logits": (self.embedding(input_ids) * (attention_mask * places).unsqueeze(2)).sum(dim=1)}


def test_fixed_shape_exports_are_padded_to_their_shape(tmp_path: Path) -> None:
    module = Baked()
    job = inference(tmp_path, {"baked": module}, documents=7, fixed_shape=(2, 32))
    run_here(job)
    data = {row["artifact_guid"]: row["input_ids"] for row in split(7, seed=7)}
    documents = table(job, "documents.parquet").to_pylist()
    for document in documents:
        ids = data[document["artifact_guid"]]
        padded = torch.tensor([ids + [0] * (32 - len(ids))])
        with torch.no_grad():
            logits = module(padded, (torch.arange(32) < len(ids)).long().unsqueeze(0))["logits"][0]
        assert np.allclose(document["baked_probabilities"], torch.softmax(logits, 0).numpy(), atol=1e-5)


def test_documents_beyond_a_fixed_shape_are_refused(tmp_path: Path) -> None:
    job = inference(tmp_path, {"baked": Baked()}, documents=20, fixed_shape=(2, 8))
    with pytest.raises(DataError, match=r"artifact guid-7-\d+: shape \(\d+,\), expected at most \(8,\)"):
        run_here(job)


def test_the_first_of_several_hosts_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = inference(tmp_path, {"tiny": Positional(bert())})
    job.write_hosts("algo-2", ["algo-1", "algo-2"])
    run_here(job)
    assert capsys.readouterr().out == "algo-1 predicts alone; nothing is left for algo-2.\n"
    assert not any(job.output.iterdir())
    job.write_hosts("algo-1", ["algo-1", "algo-2"])
    run_here(job)
    assert (job.output / "OUTPUT.json").is_file()


def test_a_tampered_model_is_not_loaded(tmp_path: Path) -> None:
    job = inference(tmp_path, {"tiny": Positional(bert())})
    model = job.channel("models") / "tiny/model.pt"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    finished = job.run()
    assert finished.returncode == 1
    assert "tiny/model.pt of model 'tiny': its content has sha256" in job.failure
    assert "Traceback" not in finished.stderr
    assert not (job.output / "OUTPUT.json").exists()


def test_a_tampered_export_is_not_read(tmp_path: Path) -> None:
    job = inference(tmp_path, {"tiny": Positional(bert())})
    (job.channel("models") / "tiny/export.json").write_text("{}")
    with pytest.raises(TrainerError, match=r"tiny/export\.json of model 'tiny': its content has sha256"):
        run_here(job)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    job = inference(tmp_path, {"tiny": Positional(bert())})
    (job.channel("models") / "tiny/model.pt").unlink()
    with pytest.raises(TrainerError, match=r"model\.pt: no such file; expected the exported model 'tiny'"):
        run_here(job)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("letter", "invoice", "memo"), "only the model knows 'memo'; only the test split has 'report'"),
        (("invoice", "letter", "report"), "the same labels in another order"),
        (("letter", "invoice"), "trained for 2 labels, the test split has 3: only the test split has 'report'"),
    ],
)
def test_labels_of_model_and_test_split_must_agree(tmp_path: Path, labels: tuple[str, ...], said: str) -> None:
    job = inference(tmp_path, {"tiny": Positional(bert(num_labels=len(labels)))}, labels=labels)
    with pytest.raises(DataError, match=said):
        run_here(job)


def test_an_empty_test_split_is_an_error(tmp_path: Path) -> None:
    job = inference(tmp_path, {"tiny": Positional(bert())}, test=split(3, seed=1).select([]))
    finished = job.run()
    assert finished.returncode == 1
    assert job.failure.startswith("the test split is empty; expected documents that no model was trained on")


def test_a_missing_test_split_is_an_error(tmp_path: Path) -> None:
    job = inference(tmp_path, {"tiny": Positional(bert())})
    for path in job.channel("test").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="expected the test split that preparation wrote"):
        run_here(job)


def test_one_class_and_an_absent_label(tmp_path: Path) -> None:
    """A split in which all documents have one label is predicted like any other."""
    data = split(30, seed=3).filter(lambda row: row["labels"] == 1)
    job = inference(tmp_path, {"tiny": Positional(bert())}, test=data)
    run_here(job)
    assert set(table(job, "predictions.parquet")["label"].to_pylist()) == {"invoice"}


class Diverged(torch.nn.Module):
    """Answers NaN for documents that begin with a large id."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        share = (input_ids[:, :1] > 30).float()
        return torch.log(0.5 - share).expand(-1, len(LABELS))


def test_nan_names_a_document(tmp_path: Path) -> None:
    job = inference(tmp_path, {"diverged": Diverged()})
    with pytest.raises(
        DataError, match=r"model 'diverged' answers with NaN or infinity for \d+ of \d+ documents, artifact guid-7-"
    ):
        run_here(job)


def test_an_error_in_a_worker_process_is_the_jobs_reason(tmp_path: Path) -> None:
    data = split(60, seed=5, lengths=(3, 20))
    long = datasets.Dataset.from_dict(
        {"input_ids": [[1] * 40], "labels": [0], "artifact_guid": ["too-long"]}, features=data.features
    )
    joined = datasets.concatenate_datasets([data, long])
    job = inference(tmp_path, {"baked": Baked()}, test=joined, fixed_shape=(2, 32), processes=2)
    # The latency sample of this seed leaves the long document to the workers.
    assert 60 not in sample_rows(np.zeros(len(joined), dtype=np.int64), LATENCY_DOCUMENTS)
    finished = job.run()
    assert finished.returncode == 1
    assert "artifact too-long: shape (40,), expected at most (32,)" in job.failure


def test_data_of_another_model_are_refused(tmp_path: Path) -> None:
    job = inference(tmp_path, {"tiny": Positional(bert())})
    keys: dict[str, Any] = {"input_keys": ["pixels"], "input_dtypes": {"pixels": "float32"}}
    model = write_model(job.channel("models") / "vision", Positional(bert()), **keys)
    write_spec(job, {"vision": model})
    with pytest.raises(DataError, match="takes pixels; the documents lack pixels"):
        run_here(job)


def run_here(job: Any) -> None:
    """In this process, where an exception can be looked at."""
    infer.main(job.folders)


def test_a_stopped_inference_ends_with_its_processes(tmp_path: Path) -> None:
    job = inference(tmp_path, {"tiny": Positional(bert())}, processes=2)
    seen: set[int] = set()

    def is_busy(pid: int) -> bool:
        seen.update(children_of(pid))
        return len(seen) >= 3  # two, and the tracker that Python's pools have

    assert job.stop_once(is_busy) == 143
    assert_gone(seen, seconds=10)
    assert not job.failure, "stopped is not failed"
    assert not (job.output / "OUTPUT.json").exists()
