"""docml gc: remove data versions, checkpoints and staged job output that nothing needs any more."""

import click

from docml_assets.cli.terminal import say
from docml_contract.names import EXPERIMENT_NAME, check_experiment_name


@click.command(name="gc")
@click.argument("experiment", required=False)
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
def command(experiment: str | None, dry_run: bool) -> None:
    """Remove what no manifest and no unfinished run needs, of EXPERIMENT or of all experiments.

    Versions of documents and prepared data stay while a run of the experiment has not finished the step that uses them.
    Claims, manifests, models, reports and job records are never removed. Do not start runs meanwhile: an experiment
    whose runs change after the listing is left alone.
    """
    from docml_assets.deployment import Deployment
    from docml_assets.runs.garbage import collect, find_garbage, runs_of

    store = Deployment.current().store
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
            say(f"{'would remove' if dry_run else 'removed'} {item.prefix} ({item.what}, {_bytes(item.size)})")
            if not dry_run:
                collect(store, item)
            total += item.size
    say(f"{_bytes(total)} {'can be removed' if dry_run else 'removed'} from {store.uri()}")


def _bytes(size: float) -> str:
    """A size that people read."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
