"""The store follows a folder: additions, changes, deletions; drafts stay out."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from resources.jobs.local.mirror import Mirror
from resources.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), environment={})


def keys(store: Store) -> dict[str, bytes]:
    return {stored.key: store.get(stored.key) for stored in store.list("checkpoints")}


def test_a_folder_and_its_image_stay_equal(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    mirror = Mirror(store, folder, "checkpoints")
    assert mirror.restore() == 0
    (folder / "step-1").mkdir()
    (folder / "step-1" / "model").write_bytes(b"1")
    (folder / ".step-2.part").mkdir()
    (folder / ".step-2.part" / "model").write_bytes(b"half")
    (folder / "step-1" / "away").symlink_to(__file__)
    mirror.sync()
    assert keys(store) == {"checkpoints/step-1/model": b"1"}
    (folder / ".step-2.part").rename(folder / "step-2")
    (folder / "step-1" / "model").unlink()
    mirror.sync()
    assert keys(store) == {"checkpoints/step-2/model": b"half"}
    (folder / "step-2" / "model").write_bytes(b"2")
    os.utime(folder / "step-2" / "model", ns=(1, 1))
    mirror.sync()
    assert keys(store) == {"checkpoints/step-2/model": b"2"}


def test_a_new_machine_gets_what_the_old_one_left(store: Store, tmp_path: Path) -> None:
    store.put("checkpoints/step-1/model", b"1")
    mirror = Mirror(store, tmp_path / "folder", "checkpoints")
    assert mirror.restore() == 1
    assert (tmp_path / "folder" / "step-1" / "model").read_bytes() == b"1"
    mirror.sync()
    assert keys(store) == {"checkpoints/step-1/model": b"1"}


def test_while_it_runs_changes_arrive_and_the_end_is_complete(store: Store, tmp_path: Path) -> None:
    mirror = Mirror(store, tmp_path / "folder", "checkpoints")
    mirror.restore()
    mirror.start()
    (tmp_path / "folder" / "a").write_bytes(b"a")
    deadline = time.monotonic() + 60
    while not store.exists("checkpoints/a"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (tmp_path / "folder" / "b").write_bytes(b"b")
    mirror.stop()
    assert keys(store) == {"checkpoints/a": b"a", "checkpoints/b": b"b"}


@pytest.mark.parametrize("swapped", ["file", "folder", "whole"])
def test_what_is_put_in_a_files_place_while_it_is_copied_is_not_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    (tmp_path / "secret/step-1").mkdir(parents=True)
    (tmp_path / "secret/step-1/model").write_bytes(b"CANARY")
    folder = tmp_path / "folder"
    mirror = Mirror(store, folder, "checkpoints")
    (folder / "step-1").mkdir()
    (folder / "step-1/model").write_bytes(b"own")
    of_the_job = {"file": "folder/step-1/model", "folder": "folder/step-1", "whole": "folder"}[swapped]
    put_file = Store.put_file

    def swap_and_put(store: Store, key: str, file: Any) -> Any:
        path = tmp_path / of_the_job
        if not path.is_symlink():
            path.rename(tmp_path / "aside")
            path.symlink_to(tmp_path / of_the_job.replace("folder", "secret"))
        return put_file(store, key, file)

    monkeypatch.setattr(Store, "put_file", swap_and_put)
    for _ in range(2):
        mirror.sync()
    assert b"CANARY" not in keys(store).values()
