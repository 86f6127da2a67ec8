"""The two layouts of a job's folder, and the reason that a failed job leaves."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from docml_contract.base import IncompleteArtifact, UnreadableDocument
from docml_contract.jobs import Channel, Compute, InferTask, JobSpec, RecordedFiles, Tracking, TrainTask
from docml_contract.manifests import describe_folder
from docml_contract.names import SPEC
from docml_trainer.container import Folders, ResourceConfig, explained_out_of_memory, is_out_of_memory
from docml_trainer.errors import FolderError, TrainingError


def test_processing_and_training_are_laid_out_differently(tmp_path: Path) -> None:
    processing, training = Folders(tmp_path, "infer"), Folders(tmp_path, "train")
    assert processing.channel("test") == tmp_path / "processing/input/test"
    assert processing.output == tmp_path / "processing/output/result"
    assert training.channel("train") == tmp_path / "input/data/train"
    assert training.output == tmp_path / "model"
    assert training.checkpoints == tmp_path / "checkpoints"


def test_the_base_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", "/elsewhere")
    assert Folders.from_environment("train").base == Path("/elsewhere")
    monkeypatch.delenv("SAGEMAKER_BASE_DIR")
    assert Folders.from_environment("train").base == Path("/opt/ml")
    with pytest.raises(FolderError, match="expected one of prepare, train, infer"):
        Folders.from_environment("tune")


def test_hosts_are_numbered_by_name_and_a_folder_without_the_file_has_one(tmp_path: Path) -> None:
    folders = Folders(tmp_path, "prepare")
    assert folders.resource_config() == ResourceConfig("algo-1", ("algo-1",))
    (tmp_path / "config").mkdir()
    config = tmp_path / "config/resourceconfig.json"
    config.write_text(json.dumps({"current_host": "algo-2", "hosts": ["algo-2", "algo-1"], "other": 1}))
    assert folders.resource_config().index == 1
    config.write_text(json.dumps({"current_host": "algo-3", "hosts": ["algo-1"]}))
    with pytest.raises(FolderError, match="algo-3"):
        folders.resource_config()
    config.write_text("[]")
    with pytest.raises(FolderError, match="expected a JSON object"):
        folders.resource_config()


def test_hyperparameters_are_decoded(tmp_path: Path) -> None:
    folders = Folders(tmp_path, "train")
    assert folders.hyperparameters() == {}
    path = tmp_path / "input/config/hyperparameters.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"epochs": "3", "learning_rate": "1e-05", "kind": '"base"', "name": "base"}))
    assert folders.hyperparameters() == {"epochs": 3, "learning_rate": 1e-05, "kind": "base", "name": "base"}
    path.write_text("{")
    with pytest.raises(FolderError, match="not JSON"):
        folders.hyperparameters()


def test_a_missing_or_wrong_spec_is_named(tmp_path: Path) -> None:
    folders = Folders(tmp_path, "prepare")
    with pytest.raises(FolderError, match=r"spec\.json: no such file"):
        folders.spec()
    folders.channel("spec").mkdir(parents=True)
    (folders.channel("spec") / "spec.json").write_text("{}")
    with pytest.raises(UnreadableDocument, match="kind"):
        folders.spec()


def test_a_failure_begins_with_its_reason_and_keeps_the_end_of_the_detail(tmp_path: Path) -> None:
    Folders(tmp_path, "prepare").fail("it broke", "x" * 5_000 + "the end")
    for name in ("failure", "message"):
        text = (tmp_path / "output" / name).read_text()
        assert text.startswith("it broke\n\n")
        assert text.endswith("the end")
        assert len(text) == 1024
    Folders(tmp_path / "t", "train").fail("y" * 2_000, "detail")
    assert (tmp_path / "t/output/failure").read_text() == "y" * 1024
    assert not (tmp_path / "t/output/message").exists()


def test_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_the_reason_names_the_remedy() -> None:
    with pytest.raises(TrainingError, match=r"out of memory: .*lower train_batch_size"), explained_out_of_memory():
        torch.empty(2**55)
    with pytest.raises(RuntimeError, match=r"^shape mismatch$"), explained_out_of_memory():
        raise RuntimeError("shape mismatch")


def test_a_spec_or_code_that_was_changed_in_the_store_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = training_spec(hashlib.sha256(b"as claimed").hexdigest())
    channel = Folders(tmp_path, "train").channel("spec")
    channel.mkdir(parents=True)
    for name, value in spec.request_variables.items():
        monkeypatch.setenv(name, value)

    def found(spec_json: bytes, functions: bytes) -> JobSpec:
        (channel / "spec.json").write_bytes(spec_json)
        (channel / "user_defined_funcs.py").write_bytes(functions)
        return Folders(tmp_path, "train").spec()

    assert found(spec.to_bytes(), b"as claimed") == spec
    with pytest.raises(FolderError, match=r"user_defined_funcs\.py: not what the job was asked to do"):
        found(spec.to_bytes(), b"swapped")
    swapped = training_spec(hashlib.sha256(b"swapped").hexdigest())
    with pytest.raises(FolderError, match=r"spec.json: not what the job was asked to do"):
        found(swapped.to_bytes(), b"swapped")


def training_spec(functions_sha256: str) -> JobSpec:
    tracking = Tracking(group="EXP-1", name="run_1-m", job_type="training")
    task = TrainTask(experiment="EXP-1", run=1, model_name="m", model_names=("m",), tracking=tracking)
    return JobSpec(
        kind="training",
        experiment="EXP-1",
        run=1,
        step="training",
        model="m",
        task=task,
        channels=(),
        files={"user_defined_funcs.py": functions_sha256},
        compute=Compute(instance_type="local"),
    )


def test_damaged_input_is_named_with_the_remedy(tmp_path: Path) -> None:
    folders = Folders(tmp_path, "infer")
    for name, content in (("train/a/data.arrow", b"rows"), ("train/state.json", b"{}")):
        path = folders.channel(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    recorded = RecordedFiles(folder="EXP-1/data/prepared/k", files=describe_folder(folders.channel("train")))
    spec = JobSpec(
        kind="processing",
        experiment="EXP-1",
        run=1,
        step="inference",
        task=InferTask(model_names=(), models={}),
        channels=(),
        compute=Compute(instance_type="local"),
    )
    prefix = f"{recorded.folder}/train"
    channel = Channel(name="train", prefix=prefix, recorded=recorded)
    folders.channel("spec").mkdir()
    for checked in (channel, channel.model_copy(update={"recorded": None})):
        (folders.channel("spec") / SPEC).write_bytes(spec.model_copy(update={"channels": (checked,)}).to_bytes())
        folders.verify_inputs()
    (folders.channel("spec") / SPEC).write_bytes(spec.model_copy(update={"channels": (channel,)}).to_bytes())
    damaged = folders.channel("train") / "a/data.arrow"
    damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + b"ows")
    with pytest.raises(
        IncompleteArtifact, match=rf"^{prefix}: a/data.arrow: content differs.*remove the folder {recorded.folder} "
    ):
        folders.verify_inputs()
    damaged.unlink()
    with pytest.raises(IncompleteArtifact, match=r"a/data\.arrow: missing"):
        folders.verify_inputs()
