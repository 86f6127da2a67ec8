"""Which runs an experiment has in the store."""

import re

from docml_contract.names import RunPlace, check_experiment_name
from resources.store.store import Store

_RUN_FOLDER = re.compile(r"run_([1-9][0-9]{0,5})")


def run_folders(store: Store, experiment: str) -> list[int]:
    """Numbers of the run folders, ascending."""
    names = store.list_folders(check_experiment_name(experiment))
    return sorted(int(match[1]) for name in names if (match := _RUN_FOLDER.fullmatch(name)))


def claimed_runs(store: Store, experiment: str) -> list[int]:
    """Numbers of the claimed runs, ascending."""
    return [number for number in run_folders(store, experiment) if store.exists(RunPlace(experiment, number).claim)]


def next_run(store: Store, experiment: str) -> int:
    """One more than the highest number in use (gaps stay gaps, so that a later run has a higher number)."""
    return max(run_folders(store, experiment), default=0) + 1
