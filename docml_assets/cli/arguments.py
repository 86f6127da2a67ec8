"""What commands are told on the command line, and what a shell completes it to."""

import os
from pathlib import Path
from typing import Any

import click

from docml_assets.experiment.folder import experiment_folders, experiments_root

CHAMPION = "champion"
Choice = int | str  # a run's number, or CHAMPION


class RunChoice(click.ParamType[Choice]):
    """A run's number, or `champion`."""

    name = "RUN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Choice:
        """The number, or CHAMPION; a usage error for anything else."""
        if value == CHAMPION:
            return CHAMPION
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r}: expected a run's number, or {CHAMPION}", param, ctx)
        return int(value)


def complete_experiment(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The experiments that there are."""
    return [name for name in experiment_folders(experiments_root(os.environ)) if name.startswith(incomplete)]


def complete_run(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The runs of the experiment before it, the newest first. Of a store in S3 none: a key pressed is not to wait for a network."""
    store = os.environ.get("DOCML_STORE") or "./storage"
    experiment = ctx.params.get(str(param.name).replace("run", "experiment"))
    if experiment is None or not Path(store).expanduser().is_dir():
        return []
    from docml_assets.errors import EXPLAINED_ERRORS
    from docml_assets.runs.claims import run_folders
    from resources.store import Store

    try:
        runs = run_folders(Store.open(store, environment=os.environ), experiment)
    except EXPLAINED_ERRORS:
        return []
    choices = [str(number) for number in reversed(runs)] + [CHAMPION] * isinstance(param.type, RunChoice)
    return [choice for choice in choices if choice.startswith(incomplete)]
