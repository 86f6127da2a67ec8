import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from docml_contract.base import UnreadableDocument
from resources.errors import StoreError, UnreadableFile
from resources.processes import start_of
from resources.store import LINK_SIZE, Store
from resources.store.folder import DRAFTS
from tests.contracts.store_contract import StoreContract


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store one"), environment={})


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store two"), environment={})


class TestFolder(StoreContract):
    def test_etags_are_the_contents_sha256(self, store: Store) -> None:
        assert store.put("a", b"x").etag == hashlib.sha256(b"x").hexdigest()
        assert next(store.list()).etag == hashlib.sha256(b"x").hexdigest()
        assert store.list_table()["etag"].to_pylist() == [hashlib.sha256(b"x").hexdigest()]
        assert store.list_table(etags=False)["etag"].to_pylist() == [None]

    def test_listing_reads_no_file_and_hashes_are_remembered(self, store: Store) -> None:
        assert store.local_path is not None
        stored = store.put("a", b"x")
        path = store.local_path / "a"
        path.chmod(0)  # root reads it all the same, so the cache is looked at below
        os.utime(path, (1, 1))
        assert [o.key for o in store.list()] == ["a"]
        path.chmod(0o644)
        backend = store.backend
        assert backend._hashes == {}  # type: ignore[attr-defined]
        assert store.head("a").etag == stored.etag  # type: ignore[union-attr]
        assert backend._hashes == {}, "changed too recently to be trusted"  # type: ignore[attr-defined]

    def test_a_settled_file_is_hashed_once(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        store.put("a", b"x")
        monkeypatch.setattr("resources.store.folder._SETTLED_NS", 0)
        time.sleep(0.02)
        first = store.head("a").etag  # type: ignore[union-attr]
        monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
        assert store.head("a").etag == first  # type: ignore[union-attr]

    def test_writing_in_place_to_a_copy_leaves_the_original_alone(self, store: Store) -> None:
        assert store.local_path is not None
        store.put("a", b"original")
        store.copy("a", "b")
        with (store.local_path / "b").open("r+b") as stream:
            stream.write(b"CHANGED!")
        assert store.get("a") == b"original"
        assert (store.local_path / "a").stat().st_nlink == 1

    def test_an_object_put_if_absent_has_one_name(self, store: Store) -> None:
        assert store.local_path is not None
        store.put_if_absent("a", b"x")
        assert (store.local_path / "a").stat().st_nlink == 1

    def test_readers_never_see_half_an_object(self, store: Store) -> None:
        contents = [b"a" * 3_000_000, b"b" * 3_000_000]
        store.put("k", contents[0])
        seen: set[bytes] = set()
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                seen.add(hashlib.sha256(store.get("k")).digest())

        reader = threading.Thread(target=read)
        reader.start()
        for i in range(20):
            store.put("k", contents[i % 2])
        stop.set()
        reader.join()
        assert seen <= {hashlib.sha256(content).digest() for content in contents}

    def test_a_killed_writer_leaves_nothing_to_see(self, store: Store) -> None:
        script = (
            "import sys, os\nfrom resources.store import LINK_SIZE, Store\n"
            f"store = Store.open({store.url!r}, environment={{}})\nstore.put('first', b'1')\nprint('ready', flush=True)\n"
            "data = b'x' * 200_000_000\nwhile True: store.put('big', data)\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
        assert writer.stdout is not None
        writer.stdout.readline()
        drafts = store.local_path / DRAFTS  # type: ignore[operator]
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not any(p.stat().st_size for p in drafts.iterdir()):
            time.sleep(0.005)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        assert [o.key for o in store.list()] in (["first"], ["big", "first"])
        if store.exists("big"):
            assert store.head("big").size == 200_000_000  # type: ignore[union-attr]
        assert store.list_folders() == []
        leftovers = list(drafts.iterdir())
        assert leftovers, "it was killed in the middle of a write"
        place, _, _ = leftovers[0].name.partition(".")
        living, elsewhere, old = (
            drafts / name for name in (f"{place}.{os.getpid()}.{start_of(os.getpid())}-1-1", "0123.1.1-1-1", "1-1-1")
        )
        for path in (living, elsewhere, old):
            path.touch()
        os.utime(old, (1, 1))
        Store.open(store.url, environment={}).put("later", b"")
        assert set(drafts.iterdir()) == {living, elsewhere}, "what killed processes left is removed"

    def test_folders_vanish_with_their_last_object(self, store: Store) -> None:
        store.put("a/b/c", b"x")
        store.delete(["a/b/c"])
        assert store.list_folders() == []
        store.put("a/d", b"x")
        assert store.list_folders() == ["a"]

    def test_key_below_an_object(self, store: Store) -> None:
        store.put("a", b"x")
        with pytest.raises(StoreError, match="both an object and a folder"):
            store.put("a/b", b"y")
        store.put("c/d", b"x")
        with pytest.raises(StoreError, match="both an object and a folder"):
            store.put("c", b"y")
        with pytest.raises(StoreError, match="both an object and a folder"):
            store.put_if_absent("c", b"y")

    def test_names_that_are_too_long_for_a_file(self, store: Store) -> None:
        with pytest.raises(StoreError, match="255 bytes"):
            store.put("n" * 300, b"")

    def test_the_drafts_folder_is_out_of_bounds(self, store: Store) -> None:
        with pytest.raises(StoreError, match="unfinished writes"):
            store.put(f"{DRAFTS}/x", b"")

    def test_names_that_are_not_utf8_are_listed_and_refusable(self, store: Store) -> None:
        assert store.local_path is not None
        store.put("ok", b"")
        (store.local_path / os.fsdecode(b"bad\xff")).write_bytes(b"x")
        assert store.list_table()["key"].to_pylist() == ["bad\ufffd", "ok"]

    def test_links_to_folders_are_not_followed(self, store: Store) -> None:
        assert store.local_path is not None
        store.put("a/b", b"x")
        (store.local_path / "a" / "circle").symlink_to(store.local_path)
        assert [o.key for o in store.list()] == ["a/b"]

    def test_a_store_that_has_gone_is_said(self, store: Store) -> None:
        assert store.local_path is not None
        store.put("a", b"x")
        store.local_path.rename(store.local_path.with_name("away"))
        with pytest.raises(StoreError, match="has gone: is it mounted still"):
            store.put("a", b"y")
        assert not store.local_path.exists(), "nothing is written to where it was"

    def test_a_file_that_cannot_be_read_is_damage_of_what_it_belongs_to(self, store: Store) -> None:
        assert store.local_path is not None
        store.put("a", b"x")
        (store.local_path / "circle").symlink_to("circle")
        os.mkfifo(store.local_path / "pipe")
        assert store.get("pipe") == b"", "nobody waits for somebody to write to it"
        with pytest.raises(UnreadableFile, match="circle: a symbolic link"):
            store.get("circle")
        memory = Store.open("/proc/self", environment={})
        with pytest.raises(UnreadableFile, match=r"mem cannot be read .*fix its permissions, or restore it"):
            memory.get("mem")
        assert issubclass(UnreadableFile, UnreadableDocument)

    def test_links_to_files_are_told_from_files_and_never_read(self, store: Store, tmp_path: Path) -> None:
        assert store.local_path is not None
        (tmp_path / "secret").write_text("CANARY")
        store.put("a/b", b"x")
        (store.local_path / "a" / "link").symlink_to(tmp_path / "secret")
        assert [o.key for o in store.list()] == ["a/b"]
        assert store.head("a/link") is None
        for etags in (False, True):
            listed = store.list_table(etags=etags)
            assert dict(zip(listed["key"].to_pylist(), listed["size"].to_pylist(), strict=True)) == {
                "a/b": 1,
                "a/link": LINK_SIZE,
            }
        for read in (store.get, lambda key: store.copy(key, "copy"), lambda key: store.get_file(key, tmp_path / "got")):
            with pytest.raises(StoreError, match="a/link: a symbolic link; expected a file"):
                read("a/link")
        assert not (tmp_path / "got").exists()
        assert not store.exists("copy")

    def test_what_is_made_is_private_whatever_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o022)
        try:
            made = Store.open(str(tmp_path / "new" / "store"), environment={})
            made.below("experiment").put("documents/a", b"x")
            (tmp_path / "shared").mkdir(mode=0o750)
            os.umask(0o002)
            Store.open(str(tmp_path / "shared"), environment={}).put("documents/a", b"x")
        finally:
            os.umask(before)
        assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("new", "new/store", "new/store/experiment")} == {
            0o700
        }
        assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o750, "a folder that a team shares stays theirs"
        inside = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "shared").iterdir()}
        assert len(inside) == 2, inside
        assert set(inside.values()) == {0o775}, "and the next of them can write, too"

    def test_reading_a_store_does_not_write_to_it(self, store: Store) -> None:
        assert store.local_path is not None
        assert list(store.list()) == []
        assert not store.local_path.exists()


@pytest.mark.parametrize("root", ["/sys/docml-store", __file__], ids=["not writable", "no folder"])
def test_a_folder_that_cannot_be_a_store_is_said_with_the_remedy(root: str) -> None:
    with pytest.raises(
        StoreError, match=r"expected a folder that this user can read and write, with space left: fix its permissions"
    ):
        Store.open(root, environment={}).put("a", b"")


def test_a_store_that_may_not_be_read_is_said_with_the_remedy(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), environment={})
    store.put("folder/a", b"")
    (tmp_path / "folder").chmod(0)

    def read_as_someone_else(answers: "multiprocessing.Queue[str]") -> None:
        if os.geteuid() == 0:  # root may read everything
            os.setuid(65_534)
        for ask in (store.list_folders, lambda: list(store.list()), lambda: store.get("folder/a")):
            try:
                ask()
            except StoreError as error:
                answers.put(str(error))
            else:
                answers.put("no error")

    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    child = fork.Process(target=read_as_someone_else, args=(answers,))
    child.start()
    found = [answers.get(timeout=60) for _ in range(3)]
    child.join()
    (tmp_path / "folder").chmod(0o700)
    assert all("Permission denied; expected a folder that this user can read and write" in said for said in found), (
        found
    )
