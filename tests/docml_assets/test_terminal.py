"""Nothing that a label, a file name, an error or user code says acts on the terminal."""

import ast
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from docml_assets import terminal
from docml_assets.display import PlainDisplay, TerminalDisplay
from docml_assets.terminal import console, say

HOSTILE = "\x1b]0;owned\x07\x1b[1A\x9b2K \u202elabel\u200b [/red] [bold"
PACKAGE = Path(terminal.__file__).parent


def acts(shown: str) -> bool:
    return any(character in shown for character in "\x1b\x07\x9b\u202e\u200b")


def test_messages_and_tables_show_it_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    say(HOSTILE, lead=HOSTILE, fg="red", err=True)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console(width=400).print(HOSTILE, Text(HOSTILE), table)
    out, err = capsys.readouterr()
    assert not acts(out + err)
    assert out.count("\\x1b]0;owned") == 6
    assert "[/red] [bold" in out


@pytest.mark.parametrize("verbose", [True, False])
def test_a_log_line_neither_acts_nor_kills_the_display(verbose: bool) -> None:
    display = TerminalDisplay(verbose=verbose)
    display._console._force_terminal = True
    with display, display._console.capture() as capture:
        display.started("encoded_splits")
        display.job_line("encoded_splits", HOSTILE, HOSTILE)
        display.progressed("encoded_splits", HOSTILE, 1, 2)
        display.epoch("encoded_splits", HOSTILE, {"epoch": HOSTILE})
        display._progress.refresh()
        display.finished("encoded_splits", HOSTILE)
    said = capture.get()
    assert "\x1b]0;" not in said
    assert not acts(said.replace("\x1b", ""))
    assert "[/red]" in said


def test_lines_elsewhere_show_it_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    display = PlainDisplay(sys.stdout, verbose=True)
    display.job_line("a", None, HOSTILE)
    display.said("a", HOSTILE)
    assert not acts(capsys.readouterr().out)


def test_there_is_no_other_way_to_the_terminal() -> None:
    others = set()
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "resources").rglob("*.py")]:
        if path.name in ("terminal.py", "display.py") or "scaffold" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("print", "click.echo", "click.secho", "Console", "sys.stdout.write", "sys.stderr.write"):
                    others.add(f"{path.relative_to(PACKAGE.parent)}:{node.lineno} {called}")
    assert not others
