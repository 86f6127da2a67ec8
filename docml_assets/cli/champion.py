"""docml champion, promote and rollback: which model of an experiment is used by default, and how that came about."""

from typing import TYPE_CHECKING

import click

from docml_assets.cli.arguments import complete_experiment, complete_run
from docml_assets.numbers import signed
from docml_assets.terminal import TableColumn, print_table, say

if TYPE_CHECKING:
    from docml_assets.deployment import Deployment


HISTORY_COLUMNS = (
    TableColumn("entry", right=True, dropped=1),
    TableColumn("run", right=True),
    TableColumn("model", shortened=True),
    TableColumn("when", dropped=2),
    TableColumn("by", dropped=3),
    TableColumn("why", prose=True),
)


@click.command(name="champion")
@click.argument("experiment", shell_complete=complete_experiment)
def champion(experiment: str) -> None:
    """Show the champion of EXPERIMENT and its history."""
    from docml_assets.deployment import Deployment
    from docml_assets.runs.champion import read_champion, read_history

    store = Deployment.current().store
    current = read_champion(store, experiment)
    say(f"{experiment}: run {current.run}, {current.model}, since {current.promoted_at}")
    rows = []
    for entry in read_history(store, experiment):
        against = f"against run {entry.against_run} {entry.against_model}" if entry.against_run else "the first"
        if entry.comparison is not None:
            against += f": macro-F1 {signed(entry.comparison.f1_difference)} on {entry.documents} documents"
        why = "rollback" if entry.rollback else f"{against}; forced: {entry.reason}" if entry.reason else against
        cells = (entry.sequence, entry.run, entry.model, entry.promoted_at, entry.by, why)
        rows.append([str(cell) for cell in cells])
    print_table(HISTORY_COLUMNS, rows)


@click.command(name="promote")
@click.argument("experiment", shell_complete=complete_experiment)
@click.argument("run", type=click.IntRange(min=1), shell_complete=complete_run)
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
    from docml_assets.runs.champion import AlreadyChampion, promote
    from docml_assets.steps.deployment import choose_model, read_deployment

    if force is not None and not force.strip():
        raise click.BadParameter("expected a reason, such as --force 'the labels changed'")
    deployment = Deployment.current()
    with make_display(verbose=False) as display:
        work = open_run(deployment, experiment, run, display, "promote")
        chosen = choose_model(work, model)
        read_deployment(work, chosen)  # what nobody can use is no champion
    check_registry(deployment)
    try:
        entry, sentence = promote(work.store, experiment, run, chosen, by=user_name(), force=force)
    except AlreadyChampion:
        mirror_champion(deployment, experiment)  # whoever promoted it may have been killed before
        raise
    _observe(experiment)
    say(f"{sentence}.")
    say(f"{experiment}: run {entry.run}, {entry.model} is the champion (entry {entry.sequence})", fg="green")
    mirror_champion(deployment, experiment)


@click.command(name="rollback")
@click.argument("experiment", shell_complete=complete_experiment)
def rollback(experiment: str) -> None:
    """Take the last promotion of EXPERIMENT back. The history keeps both."""
    from docml_assets.cli.finished_run import user_name
    from docml_assets.deployment import Deployment
    from docml_assets.runs.champion import rollback

    deployment = Deployment.current()
    check_registry(deployment)
    entry = rollback(deployment.store, experiment, by=user_name())
    _observe(experiment)
    say(f"{experiment}: run {entry.run}, {entry.model} is the champion again (entry {entry.sequence})", fg="green")
    mirror_champion(deployment, experiment)


def check_registry(deployment: "Deployment") -> None:
    """DeploymentError for a DOCML_MODEL_REGISTRY that does not work, before anything is changed."""
    _ = deployment.registry


def mirror_champion(deployment: "Deployment", experiment: str) -> None:
    """Bring the model registry up to date, where there is one. ChampionError, with what to do then, if that fails."""
    registry = deployment.registry
    if registry is None:
        return
    from docml_assets.cli.finished_run import open_run
    from docml_assets.display import Display
    from docml_assets.runs.champion import ChampionError, read_champion
    from docml_assets.steps.endpoints import endpoint_spec
    from resources.endpoints.endpoints import ask_patiently
    from resources.endpoints.interface import EndpointError

    champion = read_champion(deployment.store, experiment)
    spec = endpoint_spec(open_run(deployment, experiment, champion.run, Display(), "promote"), champion.model)
    why = f"champion of {experiment} since {champion.promoted_at}, by {champion.by}"
    try:
        arn = ask_patiently(lambda: registry.mirror(spec, why), registry.name, 1.0)
    except EndpointError as error:
        raise ChampionError(
            f"run {champion.run}, {champion.model} is the champion of {experiment}, but {registry.name} does not say so: {error}. To bring it up to "
            f"date: docml promote {experiment} {champion.run} --model {champion.model}"
        ) from error
    say(f"{registry.name}: {arn} is approved")


def _observe(experiment: str) -> None:
    """Let Dagster show which run answers now."""
    from docml_assets.assets.endpoints import observe_production
    from docml_assets.cli.home import dagster_instance, prepare_dagster_home
    from docml_assets.deployment import Deployment

    home = prepare_dagster_home()
    deployment = Deployment.current()
    with dagster_instance(home) as instance:
        observe_production(instance, deployment.store, experiment, deployment.endpoints)
