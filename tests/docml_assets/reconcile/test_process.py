"""Documents on this machine's disk: gone at the end, and after a kill as soon as somebody comes by. What is made of them is that of
process_func."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from docml_assets.reconcile.process import ArtifactTask, process_artifacts, scratch_folder
from resources.store import Store

OWNER = """
import time
from docml_assets.reconcile.process import ArtifactTask, process_artifacts, scratch_folder
from resources.store import Store
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


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_put_in_a_files_place_between_the_check_and_the_copy_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # What a process that process_func left behind may do at that moment.
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/made.txt").write_text("CANARY")
    store = Store.open(str(tmp_path / "store"), environment={})
    put_file = Store.put_file

    def swap_and_put(store: Store, key: str, file: Any) -> Any:
        (directory,) = tmp_path.glob("docml-reconcile-*/artifact-*")
        path = directory if kind == "folder" else directory / "made.txt"
        path.rename(tmp_path / "aside")
        path.symlink_to(tmp_path / "secret" / ("made.txt" if kind == "file" else ""))
        return put_file(store, key, file)

    monkeypatch.setattr(Store, "put_file", swap_and_put)
    failures = process_artifacts(
        [ArtifactTask({"artifact_guid": "a"}, "data/a", ())],
        store=store,
        functions_source="def process_func(artifact, directory): (directory / 'made.txt').write_text('own')\n",
        environment=dict(os.environ),
        processes=1,
        processed=lambda: None,
    )
    assert failures == []
    assert store.get("data/a/made.txt") == b"own"
