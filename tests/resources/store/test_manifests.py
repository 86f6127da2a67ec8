import hashlib
from pathlib import Path
from typing import Any

import pytest

from docml_contract.base import IncompleteArtifact, UnreadableDocument
from docml_contract.manifests import FileEntry, JobOutput
from resources.store import Store
from resources.store.manifests import SMALL_BYTES, check_finished, publish_bytes, publish_staged, read_manifest

FIELDS: dict[str, Any] = {
    "asset": "reconciled_data",
    "experiment": "EXP-1",
    "run": 1,
    "cache_key": "c",
    "data_version": "d",
    "inputs": {"production_labels": "v"},
    "code_version": "1",
}
FOLDER = "EXP-1/run_1/x"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store.open(str(tmp_path / "store"), environment={})
    server = request.getfixturevalue("s3_server")
    return Store.open(server.new_url(), environment=server.environment)


def test_without_a_manifest_a_folder_does_not_exist(store: Store) -> None:
    store.put(f"{FOLDER}/file", b"x")
    assert read_manifest(store, FOLDER) is None
    store.put(f"{FOLDER}/MANIFEST.json", b"{}")
    with pytest.raises(UnreadableDocument, match=r"x/MANIFEST\.json"):
        read_manifest(store, FOLDER)


def test_publishing_bytes(store: Store) -> None:
    manifest = publish_bytes(store, FOLDER, {"b": b"2", "a/deep": b"1"}, **FIELDS)
    assert [entry.path for entry in manifest.files] == ["a/deep", "b"]
    assert read_manifest(store, FOLDER) == manifest
    check_finished(store, manifest, FOLDER, deep=True)


def test_a_finished_folder_is_left_as_it_is(store: Store) -> None:
    first = publish_bytes(store, FOLDER, {"a": b"1"}, **FIELDS)
    second = publish_bytes(store, FOLDER, {"a": b"changed"}, **{**FIELDS, "data_version": "other"})
    assert second == first
    assert store.get(f"{FOLDER}/a") == b"1"
    assert (
        publish_staged(store, "nowhere", FOLDER, JobOutput(command="x", data_version="y", files=()), **FIELDS) == first
    )


def test_what_an_unfinished_attempt_left_is_replaced(store: Store) -> None:
    store.put(f"{FOLDER}/a", b"from an attempt that was killed")
    publish_bytes(store, FOLDER, {"a": b"1"}, **FIELDS)
    assert store.get(f"{FOLDER}/a") == b"1"


def test_a_rival_that_finishes_first_wins(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Store.put_if_absent
    rivals = []

    def slow(self: Store, key: str, data: bytes) -> bool:
        if not rivals:
            rivals.append(None)
            rivals.append(publish_bytes(store, FOLDER, {"a": b"rival"}, **{**FIELDS, "data_version": "rival"}))
        return original(self, key, data)

    monkeypatch.setattr(Store, "put_if_absent", slow)
    assert publish_bytes(store, FOLDER, {"a": b"mine"}, **FIELDS) == rivals[1]
    assert store.get(f"{FOLDER}/a") == b"rival"


def test_damage_is_found(store: Store) -> None:
    big = b"x" * (SMALL_BYTES + 1)
    manifest = publish_bytes(store, FOLDER, {"small": b"abc", "big": big, "gone": b"1", "longer": b"1"}, **FIELDS)
    store.put(f"{FOLDER}/small", b"abX")
    store.put(f"{FOLDER}/big", b"y" * len(big))
    store.put(f"{FOLDER}/longer", b"12")
    store.delete([f"{FOLDER}/gone"])
    with pytest.raises(IncompleteArtifact) as caught:
        check_finished(store, manifest, FOLDER)
    assert "gone: missing" in str(caught.value)
    assert "longer: 2 bytes, expected 1" in str(caught.value)
    assert "small: content differs" in str(caught.value)
    assert "big" not in str(caught.value)
    with pytest.raises(IncompleteArtifact, match="big: content differs"):
        check_finished(store, manifest, FOLDER, deep=True)


def staged_output(store: Store) -> JobOutput:
    files = {"model/weights": b"w" * 1000, "facts.json": b"{}"}
    for path, data in files.items():
        store.put(f"staged/{path}", data)
    entries = tuple(
        FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for path, data in files.items()
    )
    return JobOutput(command="train", data_version="v", files=entries)


def test_publishing_a_staged_output(store: Store) -> None:
    output = staged_output(store)
    manifest = publish_staged(store, "staged", FOLDER, output, **FIELDS)
    assert manifest.files == output.files
    check_finished(store, manifest, FOLDER, deep=True)
    assert store.get("staged/facts.json") == b"{}"


def test_a_staged_output_that_is_not_whole_is_not_published(store: Store) -> None:
    output = staged_output(store)
    store.put("staged/facts.json", b"{ }")
    with pytest.raises(IncompleteArtifact, match=r"facts\.json"):
        publish_staged(store, "staged", FOLDER, output, **FIELDS)
    store.delete(["staged/facts.json"])
    with pytest.raises(IncompleteArtifact, match=r"facts\.json"):
        publish_staged(store, "staged", FOLDER, output, **FIELDS)
    assert read_manifest(store, FOLDER) is None
