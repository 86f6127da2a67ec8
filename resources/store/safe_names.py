"""What is a safe name and a safe key.

GUIDs and file names come from databases and buckets that others fill: they are untrusted. `refusal` alone decides; everything
else asks it.
"""

import re
from typing import Any

import pyarrow.compute as pc

from docml_contract.file_names import refusal
from resources.errors import UnsafeKey

# S3 takes keys of 1,024 bytes.
MAX_KEY_BYTES = 1024
# Plain names, nearly all of them: safe by construction, so that a million are checked without a Python call for each.
_PLAIN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$"
_UNSAFE_SEGMENT = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")
_UNSAFE_CHARACTER = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udfff]")


def refusals(names: Any) -> dict[str | None, str]:
    """The refused ones among many names (an Arrow column of text): name -> reason."""
    plain = pc.fill_null(pc.match_substring_regex(names, _PLAIN), False)
    suspects = pc.unique(pc.filter(names, pc.invert(plain)))
    reasons = ((name, refusal(name)) for name in suspects.to_pylist())
    return {name: reason for name, reason in reasons if reason is not None}


def check_key(key: str) -> str:
    """`key`, or UnsafeKey: relative, '/' between non-empty segments, no '.' or '..', no control characters."""
    if not key or len(key.encode(errors="surrogatepass")) > MAX_KEY_BYTES:
        raise UnsafeKey(f"key {key[:80]!r}…: expected 1 to {MAX_KEY_BYTES} bytes")
    if _UNSAFE_SEGMENT.search(key):
        raise UnsafeKey(
            f"key {key!r}: empty, '.' and '..' segments are refused (keys are relative to the store's root)"
        )
    if _UNSAFE_CHARACTER.search(key):
        raise UnsafeKey(f"key {key!r}: control characters and invalid UTF-8 are refused")
    return key
