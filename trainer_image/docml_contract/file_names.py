"""What is a safe name for a document or a file: GUIDs and file names come from databases, buckets and requests that others fill."""

import re
import unicodedata

# The shortest of the limits that a name meets on its way: file systems take 255 bytes.
MAX_NAME_BYTES = 255
# Gateways and file systems that decode once more would turn these into separators, dots or NULs.
_ENCODED = re.compile(r"%(2e|2f|5c|0[0-9a-f]|1[0-9a-f]|7f)", re.IGNORECASE)
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
