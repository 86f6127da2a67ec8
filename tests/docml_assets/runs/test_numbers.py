from pathlib import Path

import pytest

from docml_assets.runs.numbers import claimed_runs, next_run, run_folders
from docml_contract.errors import BadName
from resources.store.store import Store


def test_runs_are_the_claimed_folders(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), environment={})
    for key in (
        "EXP/run_2/experiment/CLAIM.json",
        "EXP/run_10/experiment/CLAIM.json",
        "EXP/run_11/other",
        "EXP/run_x/a",
        "EXP/data/b",
    ):
        store.put(key, b"")
    assert run_folders(store, "EXP") == [2, 10, 11]
    assert claimed_runs(store, "EXP") == [2, 10]
    assert next_run(store, "EXP") == 12  # never a number that is in use


def test_an_experiment_without_runs_begins_with_one(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "none"), environment={})
    assert claimed_runs(store, "EXP") == []
    assert next_run(store, "EXP") == 1
    with pytest.raises(BadName):
        next_run(store, "../EXP")
