"""What is a safe name and a safe key.

GUIDs and file names come from databases and buckets that others fill: they are untrusted. `refusal` alone decides; everything
else asks it.
"""

import re
import unicodedata
from typing import Any

import pyarrow.compute as pc

from resources.errors import UnsafeKey

# The shortest of the limits that a name meets on its way: file systems take 255 bytes.
MAX_NAME_BYTES = 255
# S3 takes keys of 1,024 bytes.
MAX_KEY_BYTES = 1024
# Plain names, nearly all of them: safe by construction, so that a million are checked without a Python call for each.
_PLAIN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$"
# Gateways and file systems that decode once more would turn these into separators, dots or NULs.
_ENCODED = re.compile(r"%(2e|2f|5c|0[0-9a-f]|1[0-9a-f]|7f)", re.IGNORECASE)
_UNSAFE_SEGMENT = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")
_UNSAFE_CHARACTER = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udfff]")
# Cc control, Cf invisible formatting (bidi overrides, zero-width), Cs surrogates, Cn unassigned, Zl/Zp line separators
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})


def refusal(name: object) -> str | None:
    """Why `name` cannot be one segment of a key, or None if it can."""
    if not isinstance(name, str):
        return "no name (NULL)" if name is None else f"not text but {type(name).__name__}"
    if not name:
        return "an empty name"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "not valid UTF-8"
    if size > MAX_NAME_BYTES:
        return f"{size} bytes long (at most {MAX_NAME_BYTES})"
    if "/" in name or "\\" in name:
        return "a path separator"
    if not name.strip("."):
        return "dots only"
    if any(unicodedata.category(character) in _INVISIBLE for character in name):
        return "a control or invisible character"
    if name != name.strip():
        return "white space at an end"
    if _ENCODED.search(name):
        return "a percent-encoded separator, dot or control character"
    return None


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
