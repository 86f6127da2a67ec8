"""Nothing that a label, a file name, an error or user code says acts on the terminal."""

import ast
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.table import Table
from rich.text import Text

from docml_assets import terminal
from docml_assets.display import PlainDisplay, TerminalDisplay
from docml_assets.terminal import TableColumn, console, print_table, say

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


TABLE = (
    TableColumn("experiment", shortened=True),
    TableColumn("run", right=True),
    TableColumn("preparation", dropped=2),
    TableColumn("inference"),
    TableColumn("jobs", right=True, dropped=1),
)
ROWS = [
    ("EXP-3333-longformer-with-a-long-name", "12", "done (run 11)", "done", "4"),
    ("EXP-1", "3", "done", "failed", "12"),
]


def table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, *, piped: bool = False
) -> list[str]:
    """The lines of the table on a terminal of that width."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda console: not piped))
    print_table(TABLE, ROWS)
    return [re.sub("\x1b.*?m", "", line).rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_table_never_breaks_inside_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = table(monkeypatch, capsys, 20, piped=True)
    assert len(whole) == 3
    assert all(cell in whole[1] for cell in ROWS[0])
    for width in (100, 79, 70, 60, 52, 40):
        lines = table(monkeypatch, capsys, width)
        assert all(len(line) <= width for line in lines[:3]), width
        words = {word for line in lines[:3] for word in line.split()}
        known = {word for row in (*ROWS, [column.name for column in TABLE]) for cell in row for word in cell.split()}
        assert all(word in known or word.endswith("…") for word in words), (width, words - known)


def test_columns_go_in_a_stated_order_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table(monkeypatch, capsys, 70)
    assert lines[0].split() == ["experiment", "run", "preparation", "inference"]
    assert lines[-1] == "A wider terminal, or a pipe, shows jobs as well."
    lines = table(monkeypatch, capsys, 50)
    assert lines[0].split() == ["experiment", "run", "inference"]
    assert lines[1].split()[0] == "EXP-3333-longformer-with-a-long-n…"
    assert "shows preparation, jobs as well." in " ".join(lines[3:])


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_color_is_honoured_and_so_is_a_terminal_that_has_none(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    @click.command()
    def speak() -> None:
        say("done", fg="green", bold=True)

    monkeypatch.setenv("TERM", "xterm-256color")
    assert CliRunner().invoke(speak, color=True).output.startswith("\x1b[32m")
    monkeypatch.setenv(name, value)
    assert CliRunner().invoke(speak, color=True).output == "done\n"


def test_a_pipe_gets_whole_tables_without_colours_whatever_forces_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    print_table(TABLE, ROWS, title="all")
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert all(cell in said for cell in ROWS[0])


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
