"""How settings name the files of an artifact: by name (`raw_text.json`), or by pattern (`page_*.png`: one or more).

`*` stands for any characters, `?` for one, `[12]` for one of these. Case counts. What a pattern matches comes in natural order:
page_2 before page_10.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

WILDCARDS = "*?["


def is_pattern(entry: str) -> bool:
    """Whether an entry of FILES_FROM_PROD, FILES_OPTIONAL, FILES_ON_RESEARCH or MODEL_INPUT_FILES may match several files."""
    return any(character in entry for character in WILDCARDS)


def pattern_refusal(entry: str) -> str | None:
    """Why a pattern cannot be meant, or None: a bracket that is not closed would stand for itself."""
    rest = re.sub(r"\[!?[^\]]+\]", "", entry)
    if "[" in rest or "]" in rest:
        return "a '[' without its ']'"
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
