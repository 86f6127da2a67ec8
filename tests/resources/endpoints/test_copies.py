"""Copies of deployment folders: whole, and there for as long as somebody serves them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from resources.endpoints.copies import HeldCopies, local_folder
from resources.store import Store

ROOT = Path(__file__).parents[3]
KEY = "EXP-1/run_1/deployment/toy"
SHA256 = "0123456789abcdef" * 4
SERVE = """
import os, sys
from pathlib import Path
from resources.endpoints.copies import HeldCopies
from tests.resources.endpoints.test_copies import KEY, SHA256, RemoteStore

HeldCopies(Path(sys.argv[2])).take(RemoteStore.open(sys.argv[1], environment={}), KEY, SHA256)
os.execvp("sleep", ["sleep", "60"])
"""


class RemoteStore(Store):
    """A folder whose files cannot be used where they are, as a bucket's."""

    local_path = None  # type: ignore[assignment]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = RemoteStore.open(str(tmp_path / "store"), environment={})
    for name in ("MANIFEST.json", "model.pt"):
        store.put(f"{KEY}/{name}", name.encode())
    return store


def test_a_copy_that_was_cut_off_is_made_again(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_file = Store.get_file

    def cut_off(store: Store, key: str, path: Path) -> None:
        if key.endswith("model.pt"):
            raise KeyboardInterrupt
        copy_file(store, key, path)

    monkeypatch.setattr(Store, "get_file", cut_off)
    with pytest.raises(KeyboardInterrupt):
        local_folder(store, KEY, tmp_path / "copy")
    monkeypatch.undo()
    found = local_folder(store, KEY, tmp_path / "copy")
    assert sorted(path.name for path in found.iterdir()) == ["MANIFEST.json", "model.pt"]


def test_a_copy_stays_for_as_long_as_it_is_served(store: Store, tmp_path: Path) -> None:
    copies = HeldCopies(tmp_path / "copies")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path / "store"), str(tmp_path / "copies")], cwd=ROOT
    )
    try:
        deadline = time.monotonic() + 60
        while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (copy,) = (path for path in (tmp_path / "copies").iterdir() if path.is_dir())
        assert list(copies.unheld()) == []
        copies.remove(copy)
        assert copy.is_dir()
    finally:
        process.kill()
        process.wait()
    assert list(copies.unheld()) == [copy]
    copies.remove(copy)
    assert list((tmp_path / "copies").iterdir()) == []


def test_a_folder_of_this_machine_is_not_copied(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), environment={})
    assert HeldCopies(tmp_path / "copies").take(store, KEY, SHA256) == tmp_path / "store" / KEY
    assert not (tmp_path / "copies").exists()
