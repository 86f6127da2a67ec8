from pathlib import Path

import pytest

from resources.errors import SettingError
from resources.store import Store, StoredObject, canonical_url


def test_one_spelling_of_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "storage")
    expected = (tmp_path / "storage").resolve().as_uri()
    for spelling in ("storage", "./storage/", "link", str(tmp_path / "x" / ".." / "storage"), expected):
        assert canonical_url(spelling) == expected
    assert canonical_url("s3://bucket/") == "s3://bucket"
    assert canonical_url("s3://bucket/a/b/") == "s3://bucket/a/b"


def test_paths_with_odd_characters_survive(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "ü #%20?"), environment={})
    store.put("a", b"x")
    assert store.local_path == (tmp_path / "ü #%20?").resolve()
    assert Store.open(store.url, environment={}).get("a") == b"x"


@pytest.mark.parametrize("url", ["", "s3://", "gs://bucket", "https://x", "file://"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(SettingError):
        Store.open(url, environment={})


def test_uris() -> None:
    assert Store.open("s3://bucket/prefix", environment={}).uri("a/b") == "s3://bucket/prefix/a/b"
    assert Store.open("s3://bucket/prefix", environment={}).uri() == "s3://bucket/prefix"
    assert Store.open("s3://bucket/prefix", environment={}).local_path is None
    assert Store.open("/tmp/x", environment={}).uri("a") == str(Path("/tmp/x").resolve() / "a")


def test_nothing_is_opened_and_nothing_shown_before_use() -> None:
    environment = {"AWS_ACCESS_KEY_ID": "AKIA-visible", "AWS_SECRET_ACCESS_KEY": "hush"}
    store = Store.open("s3://no-such-bucket/x", environment=environment)
    assert store._backend is None
    assert "hush" not in repr(store)


def test_etags_may_be_lazy() -> None:
    asked = []
    stored = StoredObject("key", 1, lambda: asked.append(1) or "etag")  # type: ignore[func-returns-value]
    assert repr(stored) == "StoredObject('key', 1 bytes)"
    assert asked == []
    assert stored.etag == stored.etag == "etag"
    assert asked == [1]
    assert stored == StoredObject("key", 1, "etag")
    assert stored != StoredObject("key", 1, "other")
    assert stored != "key"
    assert len({stored, StoredObject("key", 1, "etag")}) == 1
