"""docs/operations.md: its messages are said, and every command that a message or the page names exists."""

import ast
import re
from pathlib import Path

import pytest

from docml_assets.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
SOURCES = [path for folder in ("docml_assets", "resources", "trainer_image") for path in (ROOT / folder).rglob("*.py")]
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE.partition("## Messages that ask for an act")[2], flags=re.MULTILINE)


def texts(path: Path) -> list[str]:
    """The strings of a module; of one with values in it, those parts joined by a space."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            found.append("".join(str(part) for part in parts))
    return found


SAID = "\n".join(text for path in SOURCES for text in texts(path))


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_page_is_one_that_is_said(message: str) -> None:
    assert len(MESSAGES) > 10
    assert message in SAID


def test_commands_that_messages_name_exist() -> None:
    told = set(re.findall(r"\bdocml ([a-z]+) (?=--|EXP)", SAID))
    named = told | set(re.findall(r"`docml ([a-z]+)", PAGE))
    assert {"run", "gc"} <= named
    assert not named - set(COMMANDS), named
    options = {option for text in re.findall(r"docml run[^|\n]*", PAGE) for option in re.findall(r"--[a-z]+", text)}
    assert options <= {"--next", "--run", "--dry-run"}
