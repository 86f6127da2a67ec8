"""Documents on this machine's disk: gone at the end, and after a kill as soon as somebody comes by."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from docml_assets.reconcile.process import scratch_folder

OWNER = """
import time
from docml_assets.reconcile.process import scratch_folder
with scratch_folder() as folder:
    (folder / "document.txt").write_text("confidential")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_it_is_removed_at_the_end(tmp_path: Path) -> None:
    def fail_within() -> None:
        with scratch_folder() as folder:
            (folder / "document.txt").write_text("confidential")
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail_within()
    assert list(tmp_path.iterdir()) == []


def test_that_of_a_killed_process_is_removed_by_the_next_and_no_other(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        theirs = Path(owner.stdout.readline().strip())
        with scratch_folder() as mine:
            assert set(tmp_path.iterdir()) == {mine, theirs}
        owner.kill()
    assert (theirs / "document.txt").exists()
    with scratch_folder() as mine:
        assert list(tmp_path.iterdir()) == [mine]
