"""Where the commands speak: everything that reaches a terminal passes here, and nothing in it acts on the terminal but our own colours."""

from typing import TYPE_CHECKING, Any

import click

from docml_contract.plain_text import plain

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str = "", *, lead: str = "", fg: str | None = None, bold: bool | None = None, err: bool = False) -> None:
    """One message. The colour is the lead's where there is one, else the text's."""
    if lead:
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

    return PlainConsole(highlight=False, markup=False, width=width)
