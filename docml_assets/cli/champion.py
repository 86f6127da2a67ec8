"""docml champion: which model is used by default, and how that came about."""

import click

from docml_assets.cli.terminal import console


@click.command(name="champion")
@click.argument("experiment")
def command(experiment: str) -> None:
    """Show the champion of EXPERIMENT and its history."""
    from rich.table import Table
    from rich.text import Text

    from docml_assets.deployment import Deployment
    from docml_assets.runs.champion import read_champion, read_history

    store = Deployment.current().store
    current = read_champion(store, experiment)
    terminal = console()
    terminal.print(Text(f"{experiment}: run {current.run}, {current.model}, since {current.promoted_at}"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("entry", "run", "model", "when", "by", "why"):
        table.add_column(name, overflow="fold")
    for entry in read_history(store, experiment):
        against = f"against run {entry.against_run} {entry.against_model}" if entry.against_run else "the first"
        if entry.comparison is not None:
            against += f": macro-F1 {entry.comparison.f1_difference:+.3f} on {entry.documents} documents"
        why = "rollback" if entry.rollback else f"{against}; forced: {entry.reason}" if entry.reason else against
        cells = (entry.sequence, entry.run, entry.model, entry.promoted_at, entry.by, why)
        table.add_row(*(Text(str(cell)) for cell in cells))
    terminal.print(table)
