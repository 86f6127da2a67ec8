import pyarrow as pa
import pytest

from docml_contract.file_names import refusal
from resources.errors import UnsafeKey
from resources.store.objects import check_key, refusals

# Shared with the reconciliation tests: names that must never become part of a key.
HOSTILE: list[object] = [
    None,
    "",
    " ",
    ".",
    "..",
    "...",
    "." * 40,
    "/",
    "//",
    "/etc/passwd",
    "../../etc/passwd",
    "a/../b",
    "a/b",
    "a//b",
    "..\\..\\windows",
    "C:\\x",
    "\\\\server\\share",
    "a\\b",
    "a\0b",
    "\0",
    "a\nb",
    "a\r\nHeader: x",
    "a\tb",
    "a\x1b[31m",
    "a\x7f",
    "a\x85b",
    "a\u2028b",
    "a\u2029b",
    "a\u200bb",
    "a\u202egnp.exe",
    "a\u2066b",
    "\ufeffbom",
    "a\ud800b",
    "\udcff",
    "a\uffffb",
    " lead",
    "trail ",
    "trail\u00a0",
    "x" * 256,
    "é" * 128,
    "x" * 10_000,
    "%2e%2e",
    "%2E%2E%2F",
    "a%2fb",
    "a%5Cb",
    "a%00b",
    "a%0ab",
    b"bytes",
    7,
    3.5,
    float("nan"),
    True,
    ["list"],
    *(f"{prefix}{chr(code)}" for prefix in ("", "a") for code in range(32)),
    *(f"{'../' * n}target" for n in range(1, 61)),
    *(f"a{chr(code)}b" for code in range(0x80, 0xA0)),
    *(f"{chr(code)}x" for code in range(0x202A, 0x202F)),
]
FINE = ["a", "A1", "b6753a83-34d8-5d31-a546-ab10fe34687c", "page_01.png", ".hidden", "a b", "ünïcödé", "日本語", "100%", "%41", "-x", "a..b", "x" * 255, "é" * 127]  # fmt: skip


def test_there_are_two_hundred_hostile_names() -> None:
    assert len({repr(name) for name in HOSTILE}) >= 200


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:40])
def test_hostile_names_are_refused_with_a_reason(name: object) -> None:
    assert refusal(name)


@pytest.mark.parametrize("name", FINE)
def test_ordinary_and_merely_odd_names_pass(name: str) -> None:
    assert refusal(name) is None
    assert check_key(f"folder/{name}/file") == f"folder/{name}/file"


def test_columns_are_judged_like_single_names() -> None:
    texts = [name for name in HOSTILE if name is None or (isinstance(name, str) and name.isprintable())]
    column = pa.chunked_array([pa.array(FINE), pa.array(texts, pa.string())])
    reasons = refusals(column)
    assert reasons == {name: refusal(name) for name in texts}


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "a/..", "./a", "a\0", "a\x7f", "k" * 1025, "\udcff"])
def test_unsafe_keys(key: str) -> None:
    with pytest.raises(UnsafeKey):
        check_key(key)
