"""docml runs: what every run came to."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from docml_assets.cli.terminal import console, say

if TYPE_CHECKING:
    from rich.text import Text

    from docml_assets.runs.summaries import RunSummary

STEPS = ("reconciliation", "preparation", "training", "inference")


@click.command(name="runs")
@click.argument("experiment", required=False)
@click.option("--jobs", is_flag=True, help="Name the jobs of every run as well.")
def command(experiment: str | None, jobs: bool) -> None:
    """Show the runs of EXPERIMENT, or of all experiments, newest last."""
    from docml_assets.deployment import Deployment
    from docml_assets.runs.summaries import summaries
    from docml_contract.names import EXPERIMENT_NAME, check_experiment_name

    store = Deployment.current().store
    names = (
        [check_experiment_name(experiment)]
        if experiment
        else [name for name in store.list_folders() if EXPERIMENT_NAME.fullmatch(name)]
    )
    found = [summary for name in names for summary in summaries(store, name)]
    if not found:
        say(f"No runs{f' of {experiment}' if experiment else ''} in {store.uri()}.")
        return
    _print(found, jobs=jobs)
    for run in found:
        for text in run.damage:
            say(f"{run.experiment} run {run.number} is damaged: {text}", fg="yellow", err=True)


def _print(found: "list[RunSummary]", *, jobs: bool) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("experiment", "run", *STEPS, "macro-F1", "age", "duration", "jobs"):
        table.add_column(
            column, justify="right" if column in ("run", "age", "duration", "jobs") else "left", overflow="fold"
        )
    now = datetime.now(UTC)
    for run in found:
        scores = "\n".join(f"{name} {f1:.3f}" for name, f1 in run.scores.items())
        shown = "\n".join(job.name for job in run.jobs) if jobs else str(len(run.jobs))
        table.add_row(
            run.experiment,
            str(run.number),
            *(_coloured(run.steps[step]) for step in STEPS),
            scores,
            _span((now - run.claimed_at).total_seconds()) if run.claimed_at else "",
            _span(run.seconds) if run.seconds else "",
            shown,
        )
    terminal = console()
    terminal.print(table) if terminal.is_terminal else console(width=200).print(table)


def _coloured(status: str) -> "Text":
    from rich.text import Text

    return Text(status, style={"done": "green", "failed": "red", "running": "yellow"}.get(status.partition(" ")[0], ""))


def _span(seconds: float) -> str:
    """A duration in its two largest units."""
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    for index, (unit, size) in enumerate(units):
        if seconds >= size or unit == "s":
            rest = int(seconds % size // units[index + 1][1]) if index + 1 < len(units) else 0
            return f"{int(seconds // size)} {unit}" + (f" {rest} {units[index + 1][0]}" if rest else "")
    return ""
