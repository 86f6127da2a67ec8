"""docml rollback: go back to the champion before."""

import click

from docml_assets.cli.terminal import say


@click.command(name="rollback")
@click.argument("experiment")
def command(experiment: str) -> None:
    """Take the last promotion of EXPERIMENT back. The history keeps both."""
    from docml_assets.cli.finished_run import user_name
    from docml_assets.deployment import Deployment
    from docml_assets.runs.champion import rollback

    entry = rollback(Deployment.current().store, experiment, by=user_name())
    say(f"{experiment}: run {entry.run}, {entry.model} is the champion again (entry {entry.sequence})", fg="green")
