"""Names of an artifact's files, and patterns of them."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from docml_contract.plain_text import is_invisible

# The shortest of the limits that a name meets on its way: file systems take 255 bytes.
MAX_NAME_BYTES = 255
# Gateways and file systems that decode once more would turn these into separators, dots or NULs.
_ENCODED = re.compile(r"%(2e|2f|5c|0[0-9a-f]|1[0-9a-f]|7f)", re.IGNORECASE)


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
    if any(is_invisible(character) for character in name):
        return "a control or invisible character"
    if name != name.strip():
        return "white space at an end"
    if _ENCODED.search(name):
        return "a percent-encoded separator, dot or control character"
    return None


WILDCARDS = "*?["


def is_pattern(entry: str) -> bool:
    """Whether an entry of FILES_FROM_PROD, FILES_OPTIONAL, FILES_ON_RESEARCH or MODEL_INPUT_FILES may match several files."""
    return any(character in entry for character in WILDCARDS)


def pattern_refusal(entry: str) -> str | None:
    """Why a pattern cannot be meant, or None: a bracket that is not closed would stand for itself."""
    rest = re.sub(r"\[!?[^\]]+\]", "", entry)
    if "[" in rest or "]" in rest:
        return "a '[' without its ']'"
    if "[^" in entry:
        return "'[^', where '[!' stands for all but these characters"
    return None


def matches(file: str, entry: str) -> bool:
    """Whether an entry, a name or a pattern, means this file."""
    return file == entry or (is_pattern(entry) and fnmatchcase(file, entry))


def matching(files: Iterable[str], entry: str) -> list[str]:
    """The files that an entry means, in natural order."""
    return sorted((file for file in files if matches(file, entry)), key=natural_order)


def is_optional(entry: str, optional: Iterable[str]) -> bool:
    """Whether FILES_OPTIONAL lets an artifact lack what `entry` means: it names the entry itself, or a pattern that covers it."""
    return any(matches(entry, other) for other in optional)


def natural_order(file: str) -> tuple[list[str | int], str]:
    """Sorts names by the numbers in them: page_2.png before page_10.png."""
    parts = re.split(r"([0-9]+)", file)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], file
