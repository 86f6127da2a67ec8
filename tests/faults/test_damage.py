"""A file of a finished part of a run is cut, altered or removed: it is named, and what the message says to do works; or nobody needs it."""

import re
import shutil
from pathlib import Path

import pytest

from tests.faults.matrix import played_by
from tests.faults.tiny import EXPERIMENT, Tiny, Warm

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

TRAINED = ("run_1/training", "run_1/inference", "run_1/deployment", "run_1/jobs")
# By kind: what of the finished run is taken away, so that the file is read, and where it lies.
KINDS = {
    "reconciled document": (
        (*TRAINED, "run_1/preparation", "data/prepared_data", "run_1/checkpoints"),
        "data/reconciled_artifacts/*/*/upper.json",
    ),
    "reconciled table": (
        (*TRAINED, "run_1/preparation", "data/prepared_data", "run_1/checkpoints"),
        "run_1/reconciliation/reconciled_manifest.parquet",
    ),
    "encoded rows": ((*TRAINED, "run_1/checkpoints"), "data/prepared_data/*/*/train/*.arrow"),
    "test rows": (("run_1/inference", "run_1/deployment", "run_1/jobs"), "data/prepared_data/*/*/test/*.arrow"),
    "splits": (("run_1/inference", "run_1/deployment", "run_1/jobs"), "data/prepared_data/*/*/splits.parquet"),
    "model": (("run_1/inference", "run_1/deployment", "run_1/jobs"), "run_1/training/bow/model.pt"),
    "checkpoint": (TRAINED, "run_1/checkpoints/**/step-00000008/model.safetensors"),
    "report": ((), "run_1/inference/report.json"),
    "predictions": ((), "run_1/inference/predictions.parquet"),
    "manifest": (("run_1/inference", "run_1/deployment", "run_1/jobs"), "data/prepared_data/*/*/MANIFEST.json"),
}
HOW = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "bit flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "deleted": Path.unlink,
}


def flipped(content: bytes) -> bytes:
    """One bit, in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(("fault", "kind"), played_by("test_damage"))
def test_damage(fault: str, kind: str, undisturbed: Tiny, warm: Warm, tmp_path: Path) -> None:
    without, pattern = KINDS[kind]
    tiny = undisturbed.copy(tmp_path / "tiny", without=without)
    path = sorted(tiny.place.glob(pattern))[0]
    HOW[fault](path)
    try:
        command = warm.start(tiny, "run", EXPERIMENT, "-v")
        code = command.wait(300)
        assert "Traceback" not in command.text, command.text
        if code != 0:
            assert code == 1
            said = re.sub(r"\s+", " ", command.text)
            assert path.name in said, said
            follow(tiny, said, path)
            warm.run(tiny, "run", EXPERIMENT, "-v", log="again")
        assert tiny.versions() == undisturbed.versions()
        assert tiny.report() == undisturbed.report()
        assert not tiny.wait_until_quiet(), tiny.leftovers()
    finally:
        tiny.end_everything()


def follow(tiny: Tiny, said: str, path: Path) -> None:
    """Do what the message says: remove the file, or the folder that it names."""
    if "Remove it from the store" in said:
        path.unlink()
        return
    named = re.search(r"remove the folder (\S+)", said)
    folder = named[1] if named and "/" in named[1] else str(path.parent)
    if named is None:
        assert "remove the folder" in said, said
    places = (Path(folder), tiny.store / folder, tiny.place / folder)
    found = next((place for place in places if place.is_dir()), None)
    assert found is not None, said
    shutil.rmtree(found)
