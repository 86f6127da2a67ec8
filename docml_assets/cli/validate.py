"""docml validate: all mistakes of an experiment at once, before anything costs time or money. Loads no Dagster, writes nothing."""

import os
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import click

from docml_assets.experiment.folder import ExperimentFolder
from docml_assets.experiment.problems import Problem
from docml_assets.runs.preflight import validate
from docml_contract.names import STEPS


@click.command()
@click.argument("experiment")
@click.pass_context
def command(context: click.Context, experiment: str) -> None:
    """Find every mistake of EXPERIMENT (a name, or the path of its folder) that can be known before a job starts.

    Each is shown with file and line, what was found, what was expected, and the remedy. Exits with 1 if there are any.
    """
    folder = _folder(experiment)
    problems = validate(folder, os.environ)
    if problems:
        _show(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        click.secho(f"\n{folder.name}: {count}", fg="red", bold=True)
        context.exit(1)
    settings = ExperimentFolder.load(folder).settings
    steps = [step for step in STEPS if getattr(settings, f"run_{step}")]
    click.secho(f"{folder.name}: nothing wrong", fg="green")
    click.echo(f"run {settings.run_num}: {', '.join(steps) or 'no step'}")
    click.echo(f"models: {', '.join(settings.model_names)}")


def _folder(experiment: str) -> Path:
    if os.sep in experiment:
        return Path(experiment.rstrip(os.sep))
    return Path(os.environ.get("DOCML_EXPERIMENTS") or "experiments") / experiment


def _show(problems: Iterable[Problem]) -> None:
    """One block a place; a place may have several mistakes."""
    for place, found in groupby(problems, key=lambda problem: problem.place):
        click.secho(f"\n{place}", bold=True)
        for problem in found:
            click.echo(f"  {click.style('found', fg='red')}     {problem.found}")
            click.echo(f"  {click.style('expected', fg='cyan')}  {problem.expected}")
            click.echo(f"  {click.style('remedy', fg='green')}    {problem.remedy}")
