"""What every store does, folder or S3. Inherit it, and give it fixtures `store` and `other` (two empty, writable stores)."""

import hashlib
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resources.errors import MissingKey, StoreError, UnsafeKey
from resources.store import Store

ODD_NAMES = [
    "with space",
    "a+b",
    "100%",
    "%41",
    "a&b=c?d#e",
    "ünïcödé",
    "日本語",
    "quote'\"",
    "[brackets]{braces}",
    "~tilde^caret`tick|pipe",
    "comma,semi;colon:at@",
    "dollar$star*bang!",
    ".hidden",
    "trailing.",
    "x" * 200,
]


class StoreContract:
    def test_put_and_get(self, store: Store) -> None:
        stored = store.put("a/b.txt", b"content")
        assert (stored.key, stored.size) == ("a/b.txt", 7)
        assert stored.etag
        assert store.get("a/b.txt") == b"content"
        assert store.head("a/b.txt") == stored
        assert store.exists("a/b.txt")

    def test_empty_objects_exist(self, store: Store) -> None:
        store.put("empty", b"")
        assert store.get("empty") == b""
        assert [(o.key, o.size) for o in store.list()] == [("empty", 0)]

    def test_missing(self, store: Store, tmp_path: Path) -> None:
        store.put("folder/file", b"x")
        for key in ("nothing", "folder", "folder/file/below"):
            assert store.head(key) is None
            assert not store.exists(key)
            with pytest.raises(MissingKey, match=key):
                store.get(key)
            with pytest.raises(MissingKey):
                store.get_file(key, tmp_path / "file")
            with pytest.raises(MissingKey):
                store.copy(key, "target")
        assert not (tmp_path / "file").exists()
        assert list(store.list("nothing")) == []
        assert store.list_folders("nothing") == []

    def test_overwriting_changes_the_etag(self, store: Store) -> None:
        first = store.put("key", b"one")
        second = store.put("key", b"two")
        assert first.etag != second.etag
        assert store.get("key") == b"two"
        assert store.put("key", b"one").etag == first.etag

    @pytest.mark.parametrize(
        "key", ["", "/abs", "a//b", "a/", "../up", "a/../b", "./a", "a/.", "nul\0", "line\nbreak", "\ud800", "k" * 1025]
    )
    def test_unsafe_keys_are_refused(self, store: Store, key: str) -> None:
        for attempt in (store.get, store.head, lambda k: store.put(k, b""), lambda k: store.copy("a", k)):
            with pytest.raises(UnsafeKey):
                attempt(key)
        with pytest.raises(UnsafeKey):
            store.put_if_absent(key, b"")
        with pytest.raises(UnsafeKey):
            store.delete([key])

    def test_odd_names_are_kept_byte_for_byte(self, store: Store, other: Store, tmp_path: Path) -> None:
        keys = [f"folder {name}/{name}" for name in ODD_NAMES]
        for key in keys:
            store.put(key, key.encode())
        assert [o.key for o in store.list()] == sorted(keys, key=str.encode)
        assert store.list_table()["key"].to_pylist() == sorted(keys, key=str.encode)
        assert store.list_folders() == sorted(f"folder {name}" for name in ODD_NAMES)
        for key in keys:
            assert store.get(key) == key.encode()
            assert other.copy_from(store, key, f"copy/{key}").size == len(key.encode())
        here = tmp_path / "here"
        assert store.download("", here) == len(keys)
        assert {p.relative_to(here).as_posix() for p in here.rglob("*") if p.is_file()} == set(keys)
        uploaded = other.upload(here, "again")
        assert sorted(o.key for o in uploaded) == sorted(f"again/{key}" for key in keys)
        store.delete(keys)
        assert list(store.list()) == []

    def test_prefixes_match_whole_segments(self, store: Store) -> None:
        for key in ("a/b/1", "a/b/2/3", "a/bc/4", "a/b.txt", "ab/5"):
            store.put(key, b"x")
        assert [o.key for o in store.list("a/b")] == ["a/b/1", "a/b/2/3"]
        assert [o.key for o in store.list("a/b/")] == ["a/b/1", "a/b/2/3"]
        assert [o.key for o in store.list("a/b.txt")] == []
        assert store.list_folders("a") == ["b", "bc"]
        assert store.list_folders() == ["a", "ab"]

    def test_a_store_below_a_folder(self, store: Store) -> None:
        store.put("some folder ü/%41/file", b"x")
        below = store.below("some folder ü")
        assert [o.key for o in below.list()] == ["%41/file"]
        below.put("new", b"y")
        assert store.get("some folder ü/new") == b"y"

    def test_lists_in_byte_order(self, store: Store) -> None:
        keys = ["a-b/x", "a/x", "a.b/x", "a0/x", "A/x", "é/x", "z/x", "a/x-y", "a/x/y2"]
        keys.remove("a/x")  # an object and a folder of one name cannot both be in a folder
        for key in keys:
            store.put(key, b"")
        assert [o.key for o in store.list()] == sorted(keys, key=str.encode)

    def test_ten_thousand_keys(self, store: Store, other: Store) -> None:
        ids = [hashlib.sha256(str(i).encode()).hexdigest()[:12] for i in range(2_500)]
        store.put("seed/file", b"12345")
        pairs = [("seed/file", f"many/{guid}/f{n}") for guid in ids for n in range(4)]
        assert store.copy_many(store, pairs) == []
        expected = sorted(target for _, target in pairs)
        for shards in (1, 16):
            table = store.list_table("many", shards=shards)
            assert table["key"].to_pylist() == expected
            assert set(table["size"].to_pylist()) == {5}
            assert len(set(table["etag"].to_pylist())) == 1
        assert sum(1 for _ in store.list("many")) == 10_000
        store.delete(expected)
        assert store.list_table("many").num_rows == 0

    def test_put_if_absent(self, store: Store) -> None:
        assert store.put_if_absent("claims/1", b"mine")
        assert not store.put_if_absent("claims/1", b"yours")
        assert store.get("claims/1") == b"mine"

    def test_put_if_absent_has_one_winner_among_threads(self, store: Store) -> None:
        with ThreadPoolExecutor(16) as pool:
            for key in ("race/1", "race/2", "race/3"):
                won = list(pool.map(lambda i, key=key: store.put_if_absent(key, b"%d" % i * 1000), range(16)))
                assert sum(won) == 1
                assert store.get(key) == b"%d" % won.index(True) * 1000

    def test_put_if_absent_has_one_winner_among_processes(self, store: Store) -> None:
        script = (
            "import os, pickle, sys\n"
            "store = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
            "sys.stdin.readline()\n"
            "print(store.put_if_absent('race', str(os.getpid()).encode()))\n"
        )
        command = [sys.executable, "-c", script, pickle.dumps(store).hex()]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        racers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            for _ in range(4)
        ]
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        results = {racer.pid: racer.communicate()[0].strip() for racer in racers}
        winners = [pid for pid, said in results.items() if said == "True"]
        assert len(winners) == 1
        assert store.get("race") == str(winners[0]).encode()

    def test_copy_is_independent_of_its_source(self, store: Store) -> None:
        store.put("source", b"before")
        copy = store.copy("source", "deep/er/copy")
        assert (copy.key, copy.size) == ("deep/er/copy", 6)
        store.put("source", b"after")
        store.delete(["source"])
        assert store.get("deep/er/copy") == b"before"

    def test_copy_between_stores(self, store: Store, other: Store) -> None:
        store.put("x/source ü+%25", b"data" * 1000)
        copy = other.copy_from(store, "x/source ü+%25", "y/copy ü+%25")
        assert copy.size == 4000
        assert other.get("y/copy ü+%25") == b"data" * 1000
        assert not store.exists("y/copy ü+%25")
        with pytest.raises(MissingKey, match="x/gone"):
            other.copy_from(store, "x/gone", "y/gone")

    def test_copy_many_reports_what_had_gone(self, store: Store, other: Store) -> None:
        for i in range(50):
            store.put(f"in/{i}", b"%d" % i)
        ticks: list[int] = []
        pairs = [(f"in/{i}", f"out/{i}") for i in range(60)]
        gone = other.copy_many(store, pairs, parallel=8, copied=lambda: ticks.append(1))
        assert sorted(lost.source for lost in gone) == sorted(f"in/{i}" for i in range(50, 60))
        assert len(ticks) == 50
        assert {o.key: other.get(o.key) for o in other.list("out")} == {f"out/{i}": b"%d" % i for i in range(50)}

    def test_copy_many_stops_at_an_unsafe_key(self, store: Store, other: Store) -> None:
        store.put("in", b"x")
        with pytest.raises(UnsafeKey):
            other.copy_many(store, [("in", "a/../b")])

    def test_files_of_several_parts(self, store: Store, other: Store, tmp_path: Path) -> None:
        content = os.urandom(1 << 20) * 40  # more than two parts
        (tmp_path / "big").write_bytes(content)
        stored = store.put_file("big/file", tmp_path / "big")
        with (tmp_path / "big").open("rb") as opened:
            opened.read(1)
            assert store.put_file("big/file", opened).etag == stored.etag
        assert stored.size == len(content)
        store.get_file("big/file", tmp_path / "new" / "folder" / "copy")
        assert (tmp_path / "new" / "folder" / "copy").read_bytes() == content
        assert other.copy_from(store, "big/file", "big/copy").size == len(content)
        assert hashlib.sha256(other.get("big/copy")).digest() == hashlib.sha256(content).digest()

    def test_delete(self, store: Store) -> None:
        store.put("a/1", b"")
        store.put("a/2", b"")
        store.delete(["a/1", "never/there"])
        assert [o.key for o in store.list()] == ["a/2"]
        store.delete([])
        store.delete(["a/2"])
        assert list(store.list()) == []

    def test_download_of_listed_files(self, store: Store, tmp_path: Path) -> None:
        for key in ("p/one/1", "p/two/2", "p/three/3"):
            store.put(key, key.encode())
        assert store.download("p", tmp_path, ["one/1", "three/3"]) == 2
        assert (tmp_path / "three/3").read_bytes() == b"p/three/3"
        assert not (tmp_path / "two").exists()
        with pytest.raises(MissingKey, match="p/four"):
            store.download("p", tmp_path, ["four"])
        with pytest.raises(UnsafeKey):
            store.download("p", tmp_path, ["../../outside"])

    def test_upload_refuses_links(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "link").symlink_to("/etc/hostname")
        with pytest.raises(StoreError, match="symbolic link"):
            store.upload(tmp_path / "out", "out")

    def test_no_leftovers_of_downloads(self, store: Store, tmp_path: Path) -> None:
        store.put("a", b"1")
        for _ in range(2):
            store.get_file("a", tmp_path / "here" / "a")
        with pytest.raises(MissingKey):
            store.get_file("b", tmp_path / "here" / "b")
        assert [p.name for p in (tmp_path / "here").iterdir()] == ["a"]

    def test_opens_again_from_its_url_and_pickled(self, store: Store) -> None:
        store.put("a", b"1")
        assert Store.open(store.url, environment=store._environment).get("a") == b"1"
        copy = pickle.loads(pickle.dumps(store))
        assert copy.url == store.url
        assert copy.get("a") == b"1"
        assert store.uri("a").endswith("/a")
