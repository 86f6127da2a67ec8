"""docml champion, promote and rollback: which model of an experiment is used by default, and how that came about."""

import click

from docml_assets.terminal import console, say


@click.command(name="champion")
@click.argument("experiment")
def champion(experiment: str) -> None:
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


@click.command(name="promote")
@click.argument("experiment")
@click.argument("run", type=click.IntRange(min=1))
@click.option("--model", help="The model, where the run compares several.")
@click.option(
    "--force", metavar="REASON", help="Promote it although it is worse, or cannot be compared; the reason is recorded."
)
def promote(experiment: str, run: int, model: str | None, force: str | None) -> None:
    """Make a model of run RUN the champion of EXPERIMENT, unless it is shown to be worse than the present one.

    They are compared on the test documents of both runs, with the statistics of the report.
    """
    from docml_assets.cli.finished_run import open_run, user_name
    from docml_assets.deployment import Deployment
    from docml_assets.display import make_display
    from docml_assets.runs.champion import promote
    from docml_assets.steps.deployment import choose_model, read_deployment

    if force is not None and not force.strip():
        raise click.BadParameter("expected a reason, such as --force 'the labels changed'")
    with make_display(verbose=False) as display:
        work = open_run(Deployment.current(), experiment, run, display, "promote")
        chosen = choose_model(work, model)
        read_deployment(work, chosen)  # what nobody can use is no champion
    entry, sentence = promote(work.store, experiment, run, chosen, by=user_name(), force=force)
    _observe(experiment)
    say(f"{sentence}.")
    say(f"{experiment}: run {entry.run}, {entry.model} is the champion (entry {entry.sequence})", fg="green")


@click.command(name="rollback")
@click.argument("experiment")
def rollback(experiment: str) -> None:
    """Take the last promotion of EXPERIMENT back. The history keeps both."""
    from docml_assets.cli.finished_run import user_name
    from docml_assets.deployment import Deployment
    from docml_assets.runs.champion import rollback

    entry = rollback(Deployment.current().store, experiment, by=user_name())
    _observe(experiment)
    say(f"{experiment}: run {entry.run}, {entry.model} is the champion again (entry {entry.sequence})", fg="green")


def _observe(experiment: str) -> None:
    """Let Dagster show which run answers now."""
    from docml_assets.assets.endpoints import observe_production
    from docml_assets.cli.home import dagster_instance, prepare_dagster_home
    from docml_assets.deployment import Deployment

    home = prepare_dagster_home()
    deployment = Deployment.current()
    with dagster_instance(home) as instance:
        observe_production(instance, deployment.store, experiment, deployment.endpoints)
