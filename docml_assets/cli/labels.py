"""docml labels: labels that look wrong, and documents worth labelling next, on the terminal or for a labelling tool."""

import csv
import io
import json
from typing import Any

import click

from docml_assets.cli.arguments import Choice, RunChoice, complete_experiment, complete_run
from docml_assets.cli.finished_run import find_run, open_run
from docml_assets.terminal import TableColumn, print_table, say

SHOWN = 20  # suspects on the terminal; a format writes all
WORDS = 80  # characters of an excerpt on the terminal
FORMATS = ("csv", "label-studio")


@click.command(name="labels")
@click.argument("experiment", shell_complete=complete_experiment)
@click.argument("run", type=RunChoice(), shell_complete=complete_run)
@click.option("--suspects", is_flag=True, help="Labels that look wrong, the most doubtful first (the default).")
@click.option("--next", "count", type=click.IntRange(min=1), metavar="COUNT", help="Documents to label next.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Write all of them to stdout: csv, or Label Studio's JSON tasks.",
)
def labels(experiment: str, run: Choice, suspects: bool, count: int | None, form: str | None) -> None:
    """Show which labels of run RUN (a number, or `champion`) of EXPERIMENT look wrong, or which documents to label next.

    Suspects come from the baseline's answers about documents that it was not fitted on. What to label next is chosen among the documents
    that `docml predict` has classified with this run: doubtful ones that differ from each other.
    """
    if suspects and count is not None:
        raise click.UsageError("expected --suspects or --next, not both")
    from docml_assets.deployment import Deployment
    from docml_assets.display import Display
    from docml_assets.steps.labels import label_studio_tasks, read_next, read_suspects

    deployment = Deployment.current()
    number, _ = find_run(deployment, experiment, run, None)
    work = open_run(deployment, experiment, number, Display(), "labels")
    if count is not None:
        rows = read_next(work, count)
        columns = list(rows[0])
    else:
        columns, rows = read_suspects(work, None if form else SHOWN)
    if form == "csv":
        write_csv(columns, rows)
    elif form is not None:
        say(json.dumps(label_studio_tasks(rows), indent=2, ensure_ascii=False))
    elif not rows:
        say("No label looks wrong to the baseline (or it is no better than chance: docml report says so).")
    else:
        print_next(rows) if count is not None else print_suspects(rows)


def write_csv(columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Comma-separated, a header first, which stands alone where there are no rows."""
    from docml_assets.tables import csv_cell

    written = io.StringIO()
    writer = csv.DictWriter(written, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    say(written.getvalue().rstrip("\n"))


def print_suspects(rows: list[dict[str, Any]]) -> None:
    """The most doubtful labels, with the beginning of each document."""
    columns = ("document", "label", "likely label", "margin", "text")
    _print(
        "Labels that look wrong, the most doubtful first",
        columns,
        [
            (row["artifact_guid"], row["label"], row["likely_label"], f"{row['margin']:.2f}", row["excerpt"])
            for row in rows
        ],
    )


def print_next(rows: list[dict[str, Any]]) -> None:
    """The documents to label next, with what the model hesitates between."""
    _print(
        "Documents to label next",
        ("document", "prediction", "or", "probabilities", "text"),
        [
            (
                row["artifact_guid"],
                row["prediction"],
                row["second_label"],
                f"{row['probability']:.2f} / {row['second_probability']:.2f}",
                row["excerpt"],
            )
            for row in rows
        ],
    )


def _print(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Texts stand in the last column, cut at a word, where the terminal is wide enough for them."""
    shown = [TableColumn(name, dropped=1 if name == "text" else 0, shortened=name != columns[0]) for name in columns]
    cells = []
    for row in rows:
        words = " ".join(row[-1].split())
        cells.append((*row[:-1], words if len(words) <= WORDS else words[:WORDS].rsplit(" ", 1)[0] + " …"))
    print_table(shown, cells, title=title)
