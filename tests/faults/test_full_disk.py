"""A disk that is full, under the store, the home and the jobs' folders: one message with the remedy, nothing half-written, and on it goes."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from resources.errors import StoreError
from resources.jobs.interface import JobRefused
from resources.store import Store
from tests.contracts.jobs_contract import FILES, RecordingListener, training
from tests.faults.tiny import EXPERIMENT, Tiny, Warm
from tests.resources.jobs.local.test_backend import LocalBench

RUN = ("run", EXPERIMENT, "-v")


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int, inodes: int = 100_000) -> Iterator[Path]:
    """A file system of its own at `folder`, which may hold files already; skips where this user cannot mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={megabytes}m,nr_inodes={inodes},mode=700"
    kept = folder.with_name(f"{folder.name}.kept")
    folder.rename(kept)
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        kept.rename(folder.with_name(f"{folder.name}.unused"))
        pytest.skip(f"a small file system cannot be mounted here (it takes root): {mounted.stderr.decode().strip()}")
    try:
        subprocess.run(["cp", "-a", f"{kept}/.", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the space that is left; the file that does so."""
    filler = folder / ".filler"
    with filler.open("wb", buffering=0) as stream:
        for block in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(b"\0" * block)
    return filler


def test_a_full_store_says_so_and_keeps_nothing_half(tmp_path: Path) -> None:
    with small_disk(tmp_path / "store", 1) as folder:
        store = Store.open(str(folder), environment={})
        store.put("a/kept", b"before")
        filler = fill(folder)
        for write in (
            lambda: store.put("a/big", b"x" * 100_000),
            lambda: store.put_if_absent("a/big", b"x" * 100_000),
            lambda: store.put_file("a/big", filler),
            lambda: store.copy(".filler", "a/big"),
            lambda: store.put("a/kept", b"y" * 100_000),
        ):
            with pytest.raises(StoreError, match=r"No space left on device; .* free space"):
                write()
        assert [stored.key for stored in store.list("a")] == ["a/kept"]
        assert store.get("a/kept") == b"before"
        assert not any((folder / ".docml-drafts").iterdir())
        filler.unlink()
        store.put("a/big", b"x" * 100_000)


def _files(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / str(number)).write_text("x")
    return folder


def test_a_store_without_inodes_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "store", 4, inodes=40) as folder:
        store = Store.open(str(folder), environment={})
        files = _files(tmp_path / "files", 60)
        with pytest.raises(StoreError, match="No space left on device"):
            store.upload(files, "a")
        count = len(list(store.list("a")))
        assert all(store.get(stored.key) == b"x" for stored in store.list("a"))
        assert 10 < count < 60
        assert not any((folder / ".docml-drafts").iterdir())


def test_a_store_that_may_only_be_read_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "store", 1) as folder:
        store = Store.open(str(folder), environment={})
        store.put("a/kept", b"before")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        for write in (lambda: store.put("a/kept", b"after"), lambda: store.put_if_absent("a/new", b"x")):
            with pytest.raises(StoreError, match=r"Read-only file system; .* read and write.* fix its permissions"):
                write()
        again = Store.open(str(folder), environment={})
        with pytest.raises(StoreError, match=r"Read-only file system"):
            again.put("a/kept", b"after")
        assert again.get("a/kept") == b"before"


def test_a_full_folder_of_jobs_is_a_refusal_with_the_remedy(tmp_path: Path) -> None:
    bench = LocalBench(tmp_path)
    with small_disk(bench.scratch, 1) as folder:
        filler = fill(folder)
        with pytest.raises(JobRefused, match=r"jobs cannot work in .* \(No space left on device\): free space"):
            bench.engine().run(training({"steps": 1}), FILES, holder="run-a", listener=RecordingListener())
        assert not list(bench.store.list("_active_jobs"))
        assert not [stored.key for stored in bench.store.list() if stored.key.endswith(".lease.json")]
        assert [path.name for path in folder.iterdir()] == [filler.name]


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", ["store", "home", "home/jobs"])
@pytest.mark.parametrize(
    "without",
    [("",), ("run_1/training", "run_1/inference", "run_1/checkpoints", "run_1/jobs")],
    ids=["whole", "training"],
)
def test_a_run_on_a_full_disk(
    undisturbed: Tiny, warm: Warm, tmp_path: Path, place: str, without: tuple[str, ...]
) -> None:
    tiny = undisturbed.copy(tmp_path / "tiny", without=without)
    with small_disk(tiny.root / place, 60) as folder:
        filler = fill(folder)
        command = warm.start(tiny, *RUN)
        assert command.wait(300) == 1, command.text
        assert "Traceback" not in command.text, command.text
        assert "space" in command.text, command.text
        assert not tiny.wait_until_quiet(), tiny.leftovers()
        filler.unlink()
        warm.run(tiny, *RUN, log="again")
        assert tiny.versions() == undisturbed.versions()
        assert not tiny.wait_until_quiet(), tiny.leftovers()
