"""docml run: claim a run and execute its steps in this process."""

import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import click

from docml_assets.cli.arguments import complete_experiment
from docml_assets.cli.finished_run import user_name
from docml_assets.cli.home import dagster_instance, prepare_dagster_home
from docml_assets.terminal import say

if TYPE_CHECKING:
    from docml_assets.deployment import Deployment
    from docml_assets.execution import Executed
    from docml_assets.experiment.settings.settings import Settings
    from docml_assets.runs.claims import Claim


@click.command(name="run")
@click.argument("experiment", shell_complete=complete_experiment)
@click.option(
    "--run", "number", type=click.IntRange(1, 999_999), help="Run N: claim it, or continue it from its frozen content."
)
@click.option("--next", "take_next", is_flag=True, help="Claim the next free run number, whatever RUN_NUM says.")
@click.option("--steps", help="Perform these steps (comma-separated) instead of those that the RUN_* flags turn on.")
@click.option("--verbose", "-v", is_flag=True, help="Show the jobs' own log lines as well.")
def run(experiment: str, number: int | None, take_next: bool, steps: str | None, verbose: bool) -> int:
    """Claim a run of EXPERIMENT and execute its steps here, with progress.

    Without --run or --next it is the experiment's RUN_NUM. Steps that are finished are verified and launch no job; steps that are
    turned off take an earlier run's artifact. Ctrl-C stops the running job and cancels the run.
    """
    if number and take_next:
        raise click.UsageError("--run and --next exclude each other")
    from docml_assets.deployment import Deployment

    deployment = Deployment.current()
    performed = _parse_steps(steps)
    claim, settings = claim_for(deployment, Path(experiment).name, number, take_next=take_next)
    return _execute(deployment, claim, settings, performed, verbose=verbose)


def _parse_steps(text: str | None) -> frozenset[str] | None:
    from docml_contract.names import STEPS, TRAINING, TUNING

    if text is None:
        return None
    steps = frozenset(part.strip() for part in text.split(",") if part.strip())
    unknown = sorted(steps - set(STEPS))
    if unknown or not steps:
        raise click.UsageError(f"--steps {text!r}: expected some of {', '.join(STEPS)}")
    if {TRAINING, TUNING} <= steps:
        raise click.UsageError("--steps: training and tuning exclude each other")
    return steps


def claim_for(
    deployment: "Deployment", experiment: str, number: int | None, *, take_next: bool
) -> "tuple[Claim, Settings]":
    """The claim that the command asks for, made or found, and its settings with the folder's operational ones."""
    from docml_assets.errors import ProblemsError
    from docml_assets.experiment.folder import ExperimentFolder
    from docml_assets.runs.claims import claim_next, claim_or_continue, claim_run, read_claim
    from docml_assets.runs.preflight import validate
    from docml_assets.steps.snapshot import describe_folder

    path = deployment.experiment_folder(experiment)
    store = deployment.store
    existing = read_claim(store, experiment, number) if number else None
    if existing is not None:
        changes = describe_folder(store, existing, path)
        if changes:
            say(f"{changes[0].upper()}{changes[1:]}.", fg="yellow")
        return existing, _operated(existing, path)
    problems = validate(path, deployment.environment)
    if problems:
        raise ProblemsError(problems)
    folder = ExperimentFolder.load(path)
    trigger = {"kind": "cli", "user": user_name(), "host": socket.gethostname()}
    request_id = f"cli-{uuid.uuid4()}"
    if take_next:
        claim = claim_next(store, folder, trigger=trigger, request_id=request_id)
    elif number:
        claim = claim_run(store, folder, number, trigger=trigger, request_id=request_id)
    else:
        claim = claim_or_continue(store, folder, folder.settings.run_num, trigger=trigger, request_id=request_id)
    return claim, _operated(claim, path)


def _operated(claim: "Claim", path: Path) -> "Settings":
    """The claim's settings with those that do not freeze as the folder has them now, if it can be read."""
    from docml_assets.steps.snapshot import operated_settings

    settings, note = operated_settings(claim, path)
    if note:
        say(f"{note[0].upper()}{note[1:]}.", err=True)
    return settings


def _execute(
    deployment: "Deployment", claim: "Claim", settings: "Settings", steps: frozenset[str] | None, *, verbose: bool
) -> int:
    from docml_assets.display import make_display

    home = prepare_dagster_home()
    from docml_assets.definitions import defs
    from docml_assets.display import shown_on
    from docml_assets.execution import JOB, execute, finished_folders, is_checked, selection
    from docml_assets.history import RUNS, shrink
    from docml_assets.partitions import run_tags
    from docml_assets.sensors.run_failures import sweep
    from docml_assets.steps.work import flagged_steps, in_order

    performed = steps if steps is not None else flagged_steps(settings)
    if not performed:
        raise click.UsageError(f"every RUN_* flag of {claim.experiment} is off: turn one on, or use --steps")
    say(f"{claim.experiment} run {claim.run}: {in_order(performed)} (Dagster home {home})")
    if deployment.kind == "aws":
        from docml_assets.cli.experiment import plan_lines

        for line in plan_lines(claim.experiment, settings, performed, deployment.environment):
            say(line)
    with dagster_instance(home) as instance:
        swept = sweep(instance, deployment.jobs, spared=claim.place)
        if swept:
            say(str(swept))
        job = defs.resolve_job_def(JOB)
        with make_display(verbose=verbose) as display, shown_on(display):
            executed = execute(
                instance,
                job,
                claim,
                assets=selection(performed, whole=steps is None),
                tags=run_tags(performed, settings, claim.trigger),
                checks=steps is not None
                or not is_checked(instance, job, claim, finished_folders(deployment.store, claim)),
            )
    shrink(home / RUNS / f"{executed.dagster_run_id}.db")
    return _conclude(deployment, claim, executed)


def _conclude(deployment: "Deployment", claim: "Claim", executed: "Executed") -> int:
    """Say how it ended; the exit code."""
    if executed.canceled:
        say(
            f"{claim.experiment} run {claim.run}: canceled; its job was stopped, unless another run waits for it",
            fg="yellow",
            err=True,
        )
        return 130
    for failure in executed.failures:
        say(f"{failure.step} failed: {failure.message}", fg="red", err=True)
        if not failure.explained:
            say(f"  the traceback is in the log of Dagster run {executed.dagster_run_id}", err=True)
    if not executed.success:
        return 1
    say(f"{claim.experiment} run {claim.run}: done; {deployment.store.uri(claim.place.root)}", fg="green")
    return 0
