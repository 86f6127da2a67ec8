"""Where the commands speak: everything that reaches a terminal passes here, and nothing in it acts on the terminal but our own colours.

Colours only where a terminal shows them, and never with NO_COLOR; none in a pipe, whatever FORCE_COLOR says, since tables come whole there.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
