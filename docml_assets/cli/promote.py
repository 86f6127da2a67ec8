"""docml promote: make a model the champion of its experiment."""

import click

from docml_assets.cli.terminal import say


@click.command(name="promote")
@click.argument("experiment")
@click.argument("run", type=click.IntRange(min=1))
@click.option("--model", help="The model, where the run compares several.")
@click.option(
    "--force", metavar="REASON", help="Promote it although it is worse, or cannot be compared; the reason is recorded."
)
def command(experiment: str, run: int, model: str | None, force: str | None) -> None:
    """Make a model of run RUN the champion of EXPERIMENT, unless it is shown to be worse than the present one.

    They are compared on the test documents of both runs, with the statistics of the report.
    """
    from docml_assets.cli.display import make_display
    from docml_assets.cli.finished_run import open_run, user_name
    from docml_assets.deployment import Deployment
    from docml_assets.runs.champion import promote
    from docml_assets.steps.deployment import choose_model, read_deployment

    if force is not None and not force.strip():
        raise click.BadParameter("expected a reason, such as --force 'the labels changed'")
    with make_display(verbose=False) as display:
        work = open_run(Deployment.current(), experiment, run, display, "promote")
        chosen = choose_model(work, model)
        read_deployment(work, chosen)  # what nobody can use is no champion
    entry, sentence = promote(work.store, experiment, run, chosen, by=user_name(), force=force)
    say(f"{sentence}.")
    say(f"{experiment}: run {entry.run}, {entry.model} is the champion (entry {entry.sequence})", fg="green")
