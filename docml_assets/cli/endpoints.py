"""docml deploy, undeploy and endpoints: what answers, since when, what it costs."""

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from docml_assets.cli.arguments import Choice, RunChoice, complete_experiment, complete_run
from docml_assets.cli.finished_run import find_run, open_run, user_name
from docml_assets.cli.home import dagster_instance, prepare_dagster_home
from docml_assets.terminal import TableColumn, print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from docml_assets.deployment import Deployment
    from docml_assets.steps.endpoints import EndpointRequest
    from docml_assets.steps.work import Work
    from resources.endpoints.interface import Endpoint


@click.command(name="deploy")
@click.argument("experiment", shell_complete=complete_experiment)
@click.argument("run", type=RunChoice(), shell_complete=complete_run)
@click.option("--model", help="The model, where the run compares several.")
@click.option(
    "--mode",
    type=click.Choice(["realtime", "async"]),
    default="realtime",
    show_default=True,
    help="async: requests and answers lie in the store, large ones are taken, and nothing runs (or costs) without work.",
)
@click.option("--alias", help="A stable endpoint that is moved to this run once its answers have been compared.")
@click.option(
    "--expire", type=click.FloatRange(min=0, min_open=True), metavar="HOURS", help="Take it down after this many hours."
)
@click.option("--dry-run", is_flag=True, help="Show what would be asked for, and what it costs.")
def deploy(
    experiment: str,
    run: Choice,
    model: str | None,
    mode: str,
    alias: str | None,
    expire: float | None,
    dry_run: bool,
) -> None:
    """Let an endpoint answer with a model of run RUN (a number, or `champion`) of EXPERIMENT. Its name begins with the run's number.

    It goes into service once its answers on test documents are the report's; otherwise it is taken down, and the alias stays.
    """
    from docml_assets.deployment import Deployment
    from docml_assets.display import make_display
    from docml_assets.steps.deployment import choose_model
    from docml_assets.steps.endpoints import EndpointRequest, deploy_model

    home = prepare_dagster_home()
    with make_display(verbose=False) as display:
        deployment = Deployment.current()
        number, model = find_run(deployment, experiment, run, model)
        work = open_run(deployment, experiment, number, display, "deploy")
        request = EndpointRequest(
            model=choose_model(work, model),
            mode="async" if mode == "async" else "realtime",
            alias=alias,
            expires_after=timedelta(hours=expire) if expire else None,
            by=user_name(),
        )
        if dry_run:
            _show_plan(deployment, work, request)
            return
        deployed = deploy_model(work, deployment.endpoints, request)
    from docml_assets.assets.endpoints import observe_production, record_deployment
    from docml_assets.partitions import register

    with dagster_instance(home) as instance:
        register(instance, experiment, number)
        record_deployment(instance, work, deployed)
        observe_production(instance, work.store, experiment, deployment.endpoints)
    for endpoint in (deployed.endpoint, deployed.alias):
        if endpoint is not None:
            _show_endpoint(work, endpoint)


def _show_plan(deployment: "Deployment", work: "Work", request: "EndpointRequest") -> None:
    from docml_assets.steps.endpoints import plan_endpoint

    endpoints = deployment.endpoints
    backend = endpoints.backend
    for spec in plan_endpoint(work, request):
        if spec is not None:
            endpoints.check(spec)
            usd = backend.usd_an_hour(spec)
            cost = "no price is known (DOCML_PRICES)" if usd is None else f"{usd:.2f} USD an hour while idle"
            say(f"{spec.describe()} on {backend.name}: {cost}")
            say(json.dumps(backend.requests(spec), indent=2))


def _show_endpoint(work: "Work", endpoint: "Endpoint") -> None:
    from docml_assets.steps.endpoints import idle_cost

    record = endpoint.record
    say(f"{endpoint.name}: up, {record.checked_documents} test documents answered as in the report", fg="green")
    if endpoint.state is not None and endpoint.state.url:
        say(f"  {endpoint.state.url}")
    say(f"  while idle it costs {idle_cost(endpoint)}; docml undeploy {endpoint.name} takes it down")
    if record.expires_at:
        say(f"  it is taken down at {record.expires_at}")


@click.command(name="endpoints")
def endpoints() -> int:
    """Show all endpoints: what they answer with, since when, what they cost. Those of this machine that have died are started again."""
    from docml_assets.deployment import Deployment

    prepare_dagster_home()
    known = Deployment.current().endpoints
    found, damaged = known.list_endpoints(), known.records.damaged()
    if found:
        _show_endpoints(found)
    elif not damaged:
        say("No endpoint is up.")
    for name, reason in sorted(damaged.items()):
        say(f"docml: the record of endpoint {name} cannot be read: {reason}", fg="red", err=True)
    return 1 if damaged else 0


# Where a terminal is too narrow, what the name tells goes first.
ENDPOINT_COLUMNS = (
    TableColumn("endpoint"),
    TableColumn("experiment", dropped=1),
    TableColumn("run", right=True, dropped=2),
    TableColumn("model", dropped=3),
    TableColumn("mode", dropped=6),
    TableColumn("state"),
    TableColumn("since", dropped=5),
    TableColumn("USD/h idle", right=True),
    TableColumn("expires", dropped=4),
    TableColumn("url", shortened=True),
)


def _show_endpoints(found: "Sequence[Endpoint]") -> None:
    from docml_assets.steps.endpoints import state_word

    rows = []
    for endpoint in found:
        record, spec, state = endpoint.record, endpoint.record.spec, endpoint.state
        here = "" if state is None else state.url
        usd = "?" if endpoint.usd_an_hour is None else f"{endpoint.usd_an_hour:.2f}"
        cells = (spec.name, spec.experiment, spec.run, spec.model, spec.mode, state_word(endpoint))
        more = (record.up_since or "", usd, record.expires_at or "", here or record.where)
        rows.append([str(cell) for cell in (*cells, *more)])
    print_table(ENDPOINT_COLUMNS, rows)
    for endpoint in found:
        if endpoint.state is not None and endpoint.state.reason and not endpoint.is_up:
            say(f"{endpoint.name}: {endpoint.state.reason}")
    known = [endpoint.usd_an_hour for endpoint in found if endpoint.usd_an_hour]
    if known:
        say(f"Together {sum(known):.2f} USD an hour while nobody asks; docml undeploy NAME takes one down.")


@click.command(name="undeploy")
@click.argument("name")
def undeploy(name: str) -> None:
    """Take the endpoint NAME down, with all that belongs to it."""
    from docml_assets.assets.endpoints import observe_production
    from docml_assets.deployment import Deployment

    home = prepare_dagster_home()
    deployment = Deployment.current()
    record = deployment.endpoints.records.find(name)
    deployment.endpoints.remove(record)
    with dagster_instance(home) as instance:
        observe_production(instance, deployment.store, record.spec.experiment, deployment.endpoints)
    say(f"{name} is down, and nothing of it is left", fg="green")
