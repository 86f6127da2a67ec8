"""Where the commands speak: everything that reaches a terminal passes here, and nothing in it acts on the terminal but our own colours.

Colours only where a terminal shows them, and never with NO_COLOR; none in a pipe, whatever FORCE_COLOR says, since tables come whole there.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TextIO

import click

from docml_contract.plain_text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def say(text: str = "", *, lead: str = "", fg: str | None = None, bold: bool | None = None, err: bool = False) -> None:
    """One message. The colour is the lead's where there is one, else the text's."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        click.echo(plain(lead) + plain(text), err=err)
    elif lead:
        click.echo(click.style(plain(lead), fg=fg, bold=bold) + plain(text), err=err)
    else:
        click.secho(plain(text), fg=fg, bold=bold, err=err)


class OutputLost(click.ClickException):
    """What a command says cannot be written: the disk is full, say, or the terminal has gone."""

    def show(self, file: IO[Any] | None = None) -> None:
        """On stderr, as all that is wrong."""
        say(f"docml: {self.message}", fg="red", err=True)


class Output:
    """stdout, whose failures are told from those of the work. A reader who has gone (`| head`) is click's to notice."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream does it. OutputLost; not for nothing, by which click finds out what kind of stream this is."""
        with self._explained() if text else nullcontext():
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        """As the stream does it. OutputLost."""
        with self._explained():
            self._stream.flush()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            with suppress(OSError, ValueError):  # what is still to be written has nowhere to go
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise OutputLost(
                f"what is said cannot be written to where stdout leads ({error.strerror}); what was done stays done: free space, or let it "
                "lead elsewhere, and give the command again"
            ) from error


@contextmanager
def guarded_streams() -> Iterator[None]:
    """stdout as an `Output`. A stream that is closed leads nowhere: otherwise the first file that is opened would take its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    before = sys.stdout
    sys.stdout = Output(before)
    try:
        yield
    finally:
        sys.stdout = before


def console(width: int | None = None) -> "Console":
    """A console for tables and bars. Brackets in a text are brackets: markup is not read."""
    from rich.console import Console
    from rich.segment import Segment

    class PlainConsole(Console):
        """Escapes what a text holds, after rich has laid it out and before it colours it."""

        def render(self, renderable: Any, options: Any = None) -> Any:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(plain(segment.text), segment.style)

    # Without a word rich decides, and takes FORCE_COLOR for a terminal.
    return PlainConsole(
        highlight=False, markup=False, width=width, force_terminal=None if sys.stdout.isatty() else False
    )


GAP = 2  # between columns
SHORTEST = 12  # to which names are shortened


@dataclass(frozen=True)
class TableColumn:
    """A column of a table."""

    name: str
    right: bool = False
    dropped: int = 0  # where a terminal is too narrow, the column with the lowest of these goes first; 0: never
    shortened: bool = False  # then, to what fits, with an ellipsis
    prose: bool = False  # takes what is left, and breaks between words


def print_table(
    columns: Sequence[TableColumn], rows: Sequence[Sequence["str | Text"]], title: str = "", note: str = ""
) -> None:
    """A table that never breaks inside a word. Whole where it is piped; on a terminal, columns are dropped and names shortened."""
    from rich.table import Table
    from rich.text import Text

    terminal = console()
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    widths = [
        max(Text(column.name).cell_len, *(line.cell_len for row in cells for line in row[place].split()), 0)
        for place, column in enumerate(columns)
    ]
    shown, hidden = list(range(len(columns))), list[str]()
    if terminal.is_terminal:
        widths, shown, hidden = _fit(columns, widths, terminal.width)
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for place in shown:
        column = columns[place]
        table.add_column(
            Text(column.name),
            justify="right" if column.right else "left",
            no_wrap=not column.prose,
            overflow="ellipsis",
            width=widths[place],
        )
    for row in cells:
        table.add_row(*(row[place] for place in shown))
    if title:
        terminal.print()
    console(width=sum(widths[place] + GAP for place in shown) + len(title)).print(table)
    more = [note] if note else []
    if hidden:
        more.append(f"A wider terminal, or a pipe, shows {', '.join(hidden)} as well.")
    for text in more:
        terminal.print(Text(text, "dim"), soft_wrap=True)


def _fit(columns: Sequence[TableColumn], natural: Sequence[int], width: int) -> tuple[list[int], list[int], list[str]]:
    """Widths, the places of the columns that are shown, and the names of those that are not."""
    widths, shown = list(natural), list(range(len(columns)))

    def excess() -> int:
        return sum(widths[place] for place in shown) + GAP * (len(shown) - 1) - width

    prose = [place for place in shown if columns[place].prose]
    for place in prose:
        widths[place] = max(min(widths[place], 3 * SHORTEST), widths[place] - max(0, excess()))
    for place in sorted((place for place in shown if columns[place].dropped), key=lambda place: columns[place].dropped):
        if excess() > 0:
            shown.remove(place)
    while (over := excess()) > 0:
        longest = max(
            (place for place in shown if columns[place].shortened), key=lambda place: widths[place], default=None
        )
        if longest is None or widths[longest] <= SHORTEST:
            break
        widths[longest] = max(SHORTEST, widths[longest] - over)
    return widths, shown, [columns[place].name for place in range(len(columns)) if place not in shown]
