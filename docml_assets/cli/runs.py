"""docml runs and gc: what every run came to; and removing what none of them needs any more."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from docml_assets.cli.arguments import complete_experiment
from docml_assets.numbers import duration, score, size
from docml_assets.terminal import TableColumn, print_table, say
from docml_contract.names import EXPERIMENT_NAME, check_experiment_name

if TYPE_CHECKING:
    from pathlib import Path

    from rich.text import Text

    from docml_assets.deployment import Deployment
    from docml_assets.runs.summaries import RunSummary
    from resources.store import Store

STEPS = ("reconciliation", "preparation", "training", "inference")


@click.command(name="runs")
@click.argument("experiment", required=False, shell_complete=complete_experiment)
@click.option("--jobs", is_flag=True, help="Name the jobs of every run as well.")
def runs(experiment: str | None, jobs: bool) -> None:
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
    if experiment:
        _print_history(store, found)
    for run in found:
        for text in run.damage:
            say(f"{run.experiment} run {run.number} is damaged: {text}", fg="yellow", err=True)


# Where a terminal is too narrow: the jobs go first, then their time, then steps that are told by the ones after them.
COLUMNS = (
    TableColumn("experiment", shortened=True),
    TableColumn("run", right=True),
    TableColumn("reconciliation", dropped=3),
    TableColumn("preparation", dropped=4),
    TableColumn("training", dropped=5),
    TableColumn("inference"),
    TableColumn("macro-F1 (95 %)", shortened=True),
    TableColumn("age", right=True, dropped=6),
    TableColumn("duration", right=True, dropped=2),
    TableColumn("jobs", right=True, dropped=1),
)


def _print(found: "list[RunSummary]", *, jobs: bool) -> None:
    from rich.text import Text

    now = datetime.now(UTC)
    rows: list[tuple[str | Text, ...]] = [
        (
            run.experiment,
            str(run.number),
            *(_coloured(run.steps[step]) for step in STEPS),
            "\n".join(f"{name} {score(*each)}" for name, each in run.scores.items()),
            duration((now - run.claimed_at).total_seconds()) if run.claimed_at else "",
            duration(run.seconds) if run.seconds else "",
            "\n".join(job.name for job in run.jobs) if jobs else str(len(run.jobs)),
        )
        for run in found
    ]
    print_table(COLUMNS, rows)


def _print_history(store: "Store", found: "list[RunSummary]") -> None:
    """The history of the newest report: what the table's scores, each on its own run's test documents, cannot be compared by."""
    from docml_assets.report.schema import read_report
    from docml_contract.names import RunPlace

    newest = next((run for run in reversed(found) if run.scores), None)
    if newest is None:
        return
    report = read_report(store, RunPlace(newest.experiment, newest.number))
    if len(report.history) < 2:
        return
    rows = [
        (
            str(entry.run),
            f"{entry.common_documents:,}",
            "\n".join(f"{name} {score(past.f1_macro, past.f1_macro_ci95)}" for name, past in entry.models.items()),
            ", ".join(entry.changed),
        )
        for entry in report.history
    ]
    title = f"Macro-F1 by run on the {report.num_test:,} test documents of run {report.run}"
    print_table(HISTORY_COLUMNS, rows, title=title)


HISTORY_COLUMNS = (
    TableColumn("run", right=True),
    TableColumn("documents", right=True, dropped=1),
    TableColumn("macro-F1 (95 %)", shortened=True),
    TableColumn("changed", prose=True),
)


def _coloured(status: str) -> "Text":
    from rich.text import Text

    return Text(status, style={"done": "green", "failed": "red", "running": "yellow"}.get(status.partition(" ")[0], ""))


@click.command(name="gc")
@click.argument("experiment", required=False, shell_complete=complete_experiment)
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
def gc(experiment: str | None, dry_run: bool) -> None:
    """Remove what no manifest and no unfinished run of EXPERIMENT, or of any experiment, needs.

    Versions of documents and prepared data stay while a run of the experiment has not finished the step that uses them.
    Claims, manifests, models, reports and job records are never removed. Do not start runs meanwhile: an experiment
    whose runs change after the listing is left alone.

    Without EXPERIMENT the Dagster home is tidied as well: it loses the copies of deployment folders that `docml serve` has left there,
    and the partition keys of experiments and runs that are in no store and no folder used with this home. The databases of ended runs
    are made small.
    """
    from docml_assets.deployment import Deployment
    from docml_assets.runs.garbage import collect, find_garbage, runs_of

    deployment = Deployment.current()
    store = deployment.store
    names = (
        [check_experiment_name(experiment)]
        if experiment
        else [n for n in store.list_folders() if EXPERIMENT_NAME.fullmatch(n)]
    )
    total = 0
    for name in names:
        runs = runs_of(store, name)
        garbage, kept = find_garbage(store, name)
        for entry in kept:
            say(f"{name}: {entry.what} stay: run {entry.run} {entry.reason}")
        if not dry_run and runs_of(store, name) != runs:
            say(f"{name}: a run was claimed meanwhile; left alone, run docml gc again")
            continue
        for item in garbage:
            say(f"{'would remove' if dry_run else 'removed'} {item.prefix} ({item.what}, {size(item.size)})")
            if not dry_run:
                collect(store, item)
            total += item.size
    say(f"{size(total)} {'can be removed' if dry_run else 'removed'} from {store.uri()}")
    if experiment is None:
        _collect_copies(dry_run=dry_run)
        _tidy_home(deployment, dry_run=dry_run)


def _tidy_home(deployment: "Deployment", *, dry_run: bool) -> None:
    """Tidy the Dagster home, if this deployment has used it."""
    from docml_assets.cli.home import dagster_instance, home_path, prepare_dagster_home
    from docml_assets.history import RUNS, forget_removed, forget_unevaluated, shrink_ended_runs

    if not (home_path() / RUNS).exists():
        return
    home = prepare_dagster_home()
    known = _known_runs(deployment, home)
    with dagster_instance(home) as instance:
        for key in forget_removed(instance, known, dry_run=dry_run) if known is not None else []:
            say(
                f"{'would remove' if dry_run else 'removed'} the partition key of {key}, which is neither in the store nor a folder"
            )
        if not dry_run:
            forget_unevaluated(instance)
            say(f"{size(shrink_ended_runs(instance, home))} saved in {home}")


def _known_runs(deployment: "Deployment", home: "Path") -> dict[str, set[int]] | None:
    """Experiment -> the runs that it has or may have next, in all stores and folders that this home serves; None if one cannot be read."""
    from docml_assets.cli.home import served_notes
    from docml_assets.deployment import Deployment
    from docml_assets.errors import EXPLAINED_ERRORS
    from docml_assets.experiment.folder import experiment_folders
    from docml_assets.runs.claims import next_run, run_folders

    known: dict[str, set[int]] = {}
    for note in served_notes(home):
        try:
            served = Deployment({**deployment.environment, **json.loads(note.read_text(encoding="utf-8"))})
            stored = {name for name in served.store.list_folders() if EXPERIMENT_NAME.fullmatch(name)}
            for name in stored | experiment_folders(served.experiments).keys():
                runs = {*run_folders(served.store, name), next_run(served.store, name)}
                known[name] = known.get(name, set()) | runs
        except (*EXPLAINED_ERRORS, OSError, ValueError) as error:
            say(
                f"The partition keys stay: the store or folder that {note} names was used with this home and cannot be read ({error}); "
                "remove that file if it is gone for good",
                err=True,
            )
            return None
    return known


def _collect_copies(*, dry_run: bool) -> None:
    """Remove copies of deployment folders on this machine that no `docml serve` reads any more."""
    from docml_assets.cli.home import COPIES, home_path
    from resources.endpoints.copies import HeldCopies

    copies = HeldCopies(home_path() / COPIES)
    for copy in copies.unheld():
        taken = sum(path.stat().st_size for path in copy.rglob("*") if path.is_file())
        say(f"{'would remove' if dry_run else 'removed'} {copy} (copy of a deployment folder, {size(taken)})")
        if not dry_run:
            copies.remove(copy)
