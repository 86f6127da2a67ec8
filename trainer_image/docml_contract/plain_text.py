"""Text that others wrote, made fit for a terminal, a log or a page: nothing in it acts, hides or runs backwards.

Labels, file names, error messages and whatever user code prints are untrusted. An escape sequence in them would move the cursor or
change the window's title; a bidirectional override would let a name read as another.
"""

import unicodedata

# Cc control (C0, C1), Cf invisible formatting (bidi overrides, zero-width), Cs surrogates, Cn unassigned, Zl/Zp line separators
INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})


def is_invisible(character: str) -> bool:
    """Whether a character draws nothing of its own: a control, or one that changes how its neighbours look."""
    return unicodedata.category(character) in INVISIBLE


def plain(text: str) -> str:
    """The text with every invisible character as an escape that people can read (`\\x1b`, `\\u202e`); line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text.replace("\r\n", "\n"))


def plain_line(text: str) -> str:
    """The same on one line: line ends are escaped, too."""
    return plain(text).replace("\n", "\\n")


def _escaped(character: str) -> str:
    if character in "\n\t" or not is_invisible(character):
        return character
    return (
        character.encode("ascii", "backslashreplace").decode() if ord(character) > 0x7F else f"\\x{ord(character):02x}"
    )
