"""docml new: a folder to begin with."""

import os
from pathlib import Path

import click

from docml_assets.cli.terminal import say
from docml_assets.experiment.scaffold import new_experiment
from docml_contract.names import check_experiment_name


@click.command()
@click.argument("experiment")
@click.option(
    "--model",
    metavar="NAME",
    help="A model to fine-tune: a Hugging Face name such as distilbert-base-uncased, or a folder. "
    "Without it: a small model from scratch that needs no download.",
)
def command(experiment: str, model: str | None) -> None:
    """Scaffold EXPERIMENT (a name such as EXP-3333-longformer) below experiments/, or below DOCML_EXPERIMENTS.

    The folder validates and runs as it is on the bundled sample documents.
    """
    root = Path(os.environ.get("DOCML_EXPERIMENTS") or "experiments")
    folder = (root / check_experiment_name(experiment)).resolve()
    files = [path.name for path in new_experiment(folder, model)]
    say(f"{folder}: wrote {' and '.join(files)}")
    say(f"Next: edit both files, then  docml validate {experiment}  and  docml run {experiment}")
