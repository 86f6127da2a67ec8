"""docml new and validate: a folder to begin with, and all its mistakes at once, with a look at its labels, before anything costs time or
money.

Loads no Dagster, unless a new experiment is to be shown to a home that is in use.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.compute as pc

from docml_assets.cli.arguments import complete_experiment
from docml_assets.errors import DocmlError, Problem
from docml_assets.experiment.folder import SETTINGS, ExperimentFolder, experiments_root
from docml_assets.experiment.scaffold import new_experiment
from docml_assets.experiment.settings.ini import parse_ini
from docml_assets.experiment.settings.settings import SECTIONS, Settings
from docml_assets.numbers import counted
from docml_assets.reconcile.findings import ReconciliationError, ReconciliationFindings
from docml_assets.runs.cost_plan import CostPlan
from docml_assets.runs.preflight import ANSWER_SECONDS
from docml_assets.runs.preflight import validate as find_problems
from docml_assets.sample import LABELS_URL
from docml_assets.terminal import say
from docml_contract.names import STEPS, check_experiment_name
from resources.errors import ResourceError
from resources.jobs.interface import read_prices
from resources.label_values import column_named, describe_idle, idle_names, look_alikes, missing_values
from resources.labels import LabelSource
from resources.store import Store


@click.command()
@click.argument("experiment")
@click.option(
    "--model",
    metavar="NAME",
    help="A model to fine-tune: a Hugging Face name such as distilbert-base-uncased, or a folder. "
    "Without it: a small model from scratch that needs no download.",
)
def new(experiment: str, model: str | None) -> None:
    """Scaffold EXPERIMENT (a name such as EXP-3333-longformer) below experiments/, or below DOCML_EXPERIMENTS.

    The folder validates and runs as it is on the bundled sample documents.
    """
    folder = (experiments_root(os.environ) / check_experiment_name(experiment)).resolve()
    files = [path.name for path in new_experiment(folder, model)]
    say(f"{folder}: wrote {' and '.join(files)}")
    _offer(experiment)
    say(f"Next: edit both files, then  docml validate {experiment}  and  docml run {experiment}")


def _offer(experiment: str) -> None:
    """Register the experiment with a Dagster home that is in use; `make ui` registers all there are."""
    from docml_assets.cli.home import SETTINGS as HOME_SETTINGS
    from docml_assets.cli.home import dagster_instance, home_path, prepare_dagster_home

    if not (home_path() / HOME_SETTINGS).exists():
        return
    try:
        with dagster_instance(prepare_dagster_home()) as instance:
            from docml_assets.partitions import register

            register(instance, experiment, 1)
    except DocmlError as error:  # the folder is there all the same
        say(f"The Dagster UI does not offer it yet: {error}", fg="yellow", err=True)


PREVIEW_SECONDS = 60
SHOWN_LABELS = 10


@click.command()
@click.argument("experiment", shell_complete=complete_experiment)
@click.pass_context
def validate(context: click.Context, experiment: str) -> None:
    """Find every mistake of EXPERIMENT (a name, or the path of its folder) that can be known before a job starts.

    Each is shown with file and line, what was found, what was expected, and the remedy. Exits with 1 if there are any.
    """
    folder = _folder(experiment)
    problems = find_problems(folder, os.environ)
    if problems:
        _show(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        say(f"\n{folder.name}: {count}", fg="red", bold=True)
        context.exit(1)
    loaded = ExperimentFolder.load(folder)
    settings = loaded.settings
    steps = [step for step in STEPS if getattr(settings, f"run_{step}")]
    say(f"{folder.name}: nothing wrong", fg="green")
    say(f"run {settings.run_num}: {', '.join(steps) or 'no step'}")
    say(f"models: {', '.join(settings.model_names)}")
    for line in plan_lines(folder.name, settings, steps, os.environ):
        say(line)
    _preview(loaded, os.environ)


def plan_lines(experiment: str, settings: Settings, steps: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """What performing the steps starts, what that may cost, and what it took before."""
    on_aws = environment.get("DOCML_ENV") == "aws"
    store = Store.open(environment.get("DOCML_STORE") or "./storage", environment=environment)
    plan = CostPlan.make(settings, steps, read_prices(environment))
    patient = store.with_patience(ANSWER_SECONDS)
    return plan.with_records(patient, experiment, "sagemaker" if on_aws else "local").describe(on_aws=on_aws)


def _preview(folder: ExperimentFolder, environment: Mapping[str, str]) -> None:
    """Show what LABELS_QUERY yields and what is odd about it. A database that does not answer is said, and no mistake."""
    settings = folder.settings
    source = LabelSource(
        environment.get("DOCML_LABELS_URL") or LABELS_URL, environment, timeout_seconds=PREVIEW_SECONDS
    )
    try:
        rows = source.fetch(settings.labels_query, max_rows=settings.max_label_rows)
        rows = _labelled(folder, rows, environment)
    except (ResourceError, ReconciliationError) as error:
        say(f"labels: not looked at: {error}", fg="yellow")
        return
    counts = label_counts(rows)
    shown = [f"{label} {count}" for label, count in counts.most_common(SHOWN_LABELS)]
    more = f" and {len(counts) - SHOWN_LABELS} more" if len(counts) > SHOWN_LABELS else ""
    say(f"labels: {len(counts)} in {rows.num_rows} rows: {', '.join(shown)}{more}")
    oddities = [*find_oddities(folder, rows, counts)]
    if oddities:
        say(f"\n{folder.name}: worth a look", fg="yellow", bold=True)
        _show(oddities)


def _labelled(folder: ExperimentFolder, rows: pa.Table, environment: Mapping[str, str]) -> pa.Table:
    """The rows as the use case wants them; what it changes is said."""
    if folder.use_case is None:
        return rows
    from docml_assets.reconcile.use_case import UseCaseAtWork  # polars loads where it is used

    findings = ReconciliationFindings()
    rows = UseCaseAtWork(folder.use_case, environment, PREVIEW_SECONDS).label(rows, findings)
    counted = (f"{stage.removeprefix('use case: ')} {count}" for stage, count in findings.funnel.items())
    say(f"use case: {folder.use_case.describe()}: {', '.join(counted)}")
    return rows


def label_counts(rows: pa.Table) -> Counter[str]:
    """How many rows each label has; rows without one do not count."""
    column = column_named(rows.column_names, "label")
    if column is None:
        return Counter()
    labels = rows[column]
    if not pa.types.is_string(labels.type):  # as reconciliation writes them
        import polars as pl  # loads where it is used

        from docml_assets.reconcile.labels import as_texts

        labels = as_texts(pl.Series(labels)).to_arrow()
    return Counter(labels.drop_null().to_pylist())


def find_oddities(folder: ExperimentFolder, rows: pa.Table, counts: Mapping[str, int]) -> Iterator[Problem]:
    """What a run could do with these labels, though hardly as it is meant."""
    settings, path = folder.settings, str(folder.path / SETTINGS)
    line = {
        key: entry.line for key, entry in parse_ini(folder.settings_text, path, SECTIONS).section("settings").items()
    }

    def oddity(key: str, found: str, expected: str, remedy: str) -> Problem:
        return Problem(path, line.get(key, 1), found, expected, remedy)

    idle = idle_names(settings.ignored_labels, counts)
    if idle:
        found = f"IGNORED_LABELS with {describe_idle(idle)}, which no row has"
        yield oddity("IGNORED_LABELS", found, "labels that rows have", "correct or remove it: it filters nothing")
    for group in look_alikes(counts):
        found = f"labels that look the same: {' = '.join(map(repr, group))}"
        remedy = "make them one, with lower(trim(label)) for example, or ignore all but one"
        yield oddity("LABELS_QUERY", found, "one spelling for each label", remedy)
    if missing := [label for label in missing_values(counts) if label not in settings.ignored_labels]:
        found = f"labels that may say that there is none: {', '.join(map(repr, missing))}"
        remedy = "leave these rows out in LABELS_QUERY, or name them in IGNORED_LABELS"
        yield oddity("LABELS_QUERY", found, "labels that documents have", remedy)
    kept = [
        label
        for label, n in counts.items()
        if label not in settings.ignored_labels and n >= settings.num_labels_threshold
    ]
    if len(kept) < 2:
        found = f"{counted(len(kept), 'label')} that neither IGNORED_LABELS nor NUM_LABELS_THRESHOLD leaves out"
        yield oddity("LABELS_QUERY", found, "at least 2 to tell apart", "look at the query and at these two keys")
    if settings.split_by is None:
        return
    column = column_named(rows.column_names, settings.split_by)
    if column is None:
        found = f"SPLIT_BY = {settings.split_by}, where the query yields {', '.join(rows.column_names)}"
        yield oddity("SPLIT_BY", found, "a column of LABELS_QUERY", "select it too, or correct the name")
        return
    groups = len(pc.unique(pc.drop_null(rows[column])))
    if groups in (0, rows.num_rows):
        found = f"SPLIT_BY = {settings.split_by} with {'no value' if not groups else 'another value'} in every row"
        yield oddity("SPLIT_BY", found, "values that several documents share", "name another column: it groups nothing")


def _folder(experiment: str) -> Path:
    if os.sep in experiment:
        return Path(experiment.rstrip(os.sep))
    return experiments_root(os.environ) / experiment


def _show(problems: Iterable[Problem]) -> None:
    """One block a place; a place may have several mistakes."""
    for place, found in groupby(problems, key=lambda problem: problem.place):
        say(f"\n{place}", bold=True)
        for problem in found:
            say(problem.found, lead="  found     ", fg="red")
            say(problem.expected, lead="  expected  ", fg="cyan")
            say(problem.remedy, lead="  remedy    ", fg="green")
