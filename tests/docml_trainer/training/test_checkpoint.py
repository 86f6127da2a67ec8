import json
from pathlib import Path

import numpy as np
import pytest
import torch

from docml_trainer.training.checkpoint import Checkpoints, newest_common, random_states, restore_random_states

IDENTITY = "a" * 64


def model(value: float) -> torch.nn.Module:
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, value)
    return layer


def saved(folder: Path, steps: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(folder, IDENTITY)
    for step in range(1, steps + 1):
        best = checkpoints.save_best(step, model(-step))
        checkpoints.save(step, model(step), {"optimizer": {"state": torch.tensor(step)}}, {"best": best, "step": step})
    return checkpoints


def test_the_last_two_are_kept_with_the_weights_they_name(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    assert checkpoints.names() == ["step-00000003", "step-00000002"]
    assert sorted(path.name for path in checkpoints.folder.glob("best-*")) == [
        "best-00002.safetensors",
        "best-00003.safetensors",
    ]
    newest = checkpoints.open("step-00000003")
    target = model(0)
    newest.load_model(target)
    assert target.weight[0, 0] == 3
    assert newest.load_state()["optimizer"]["state"] == 3
    checkpoints.load_best(newest.progress["best"], target)
    assert target.weight[0, 0] == -3


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "progress.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
def test_a_partial_sync_falls_back_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage: str
) -> None:
    checkpoints = saved(tmp_path)
    path = checkpoints.folder / "step-00000003" / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if damage == "short" else content[:-9] + b"\x00" * 9)
    assert checkpoints.names() == ["step-00000002"]
    assert "Checkpoint step-00000003 is not used" in capsys.readouterr().out


def test_weights_of_the_best_epoch_are_verified_too(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    (checkpoints.folder / "best-00003.safetensors").write_bytes(b"half")
    assert checkpoints.names() == ["step-00000002"]


def test_another_training_is_never_resumed(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    assert Checkpoints(tmp_path, "b" * 64).names() == []
    manifest = checkpoints.folder / "step-00000003" / "MANIFEST.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"identity": "b" * 64}))
    assert checkpoints.names() == ["step-00000002"]


def test_a_crash_while_writing_leaves_nothing_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, steps=2)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("docml_trainer.training.checkpoint.write_atomically", crash)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(3, model(3), {}, {"best": None})
    assert checkpoints.names() == ["step-00000002", "step-00000001"]
    checkpoints.save(3, model(3), {}, {"best": None})
    assert checkpoints.names() == ["step-00000003", "step-00000002"]
    assert not list(checkpoints.folder.glob(".*"))


def test_hosts_agree_on_a_checkpoint_that_all_of_them_have() -> None:
    assert newest_common(["step-3", "step-2"], lambda mine: [mine, ["step-2", "step-1"]]) == "step-2"
    assert newest_common(["step-3"], lambda mine: [mine, []]) is None


def test_random_states_come_back(tmp_path: Path) -> None:
    path = tmp_path / "states.pt"
    torch.save(random_states(), path)
    first = torch.rand(3), np.random.rand(3)
    restore_random_states(torch.load(path, weights_only=True))
    assert torch.equal(torch.rand(3), first[0])
    assert np.array_equal(np.random.rand(3), first[1])
