"""One file that cannot be read affects its own run only: it is named, and skipped where it is not needed."""

import os
import re

import pytest
from click.testing import CliRunner, Result

from docml_assets.cli import runs
from docml_assets.runs.claims import RunClaimed, claim_next, claim_run, read_claim
from docml_assets.runs.preflight import validate
from docml_assets.steps.preparation import read_prepared, run_preparation
from docml_assets.steps.reconciliation import reconciliation
from docml_assets.steps.reuse import read_previous_splits
from docml_assets.steps.training import run_training
from docml_contract.base import UnreadableDocument
from docml_contract.manifests import FileEntry
from docml_contract.names import MANIFEST, PREPARED, RECONCILED_TABLE, REPORT_JSON, RunPlace
from resources.store.manifests import read_manifest
from tests.docml_assets.world import World


@pytest.fixture
def place(world: World, monkeypatch: pytest.MonkeyPatch) -> RunPlace:
    """Run 1 of two, both trained."""
    for name in [name for name in os.environ if name.startswith("DOCML_")]:
        monkeypatch.delenv(name)
    for name, value in {**world.deployment.environment, "DAGSTER_HOME": str(world.root / "home")}.items():
        monkeypatch.setenv(name, value)
    world.write_experiment()
    for number in (1, 2):
        work = world.work(world.claim(number))
        reconciliation(work)
        run_preparation(work)
        run_training(work)
    return RunPlace("EXP-1", 1)


def call(command: object) -> Result:
    result = CliRunner().invoke(command, [])  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result


def damage(world: World, key: str) -> None:
    content = world.store.get(key)
    world.store.put(key, content[: len(content) // 2])


KEYS = {
    "claim": lambda place, world: place.claim,
    "manifest of reconciliation": lambda place, world: f"{place.reconciliation}/{MANIFEST}",
    "manifest of preparation": lambda place, world: f"{place.preparation}/{MANIFEST}",
    "prepared.json": lambda place, world: f"{place.preparation}/{PREPARED}",
    "reconciled table": lambda place, world: f"{place.reconciliation}/{RECONCILED_TABLE}",
    "manifest of a model": lambda place, world: f"{place.trained('small', tuned=False)}/{MANIFEST}",
    "manifest of a report": lambda place, world: f"{place.inference}/{MANIFEST}",
    "report": lambda place, world: f"{place.inference}/{REPORT_JSON}",
    "record of a job": lambda place, world: f"{place.jobs}/EXP-1-r1-training-0123456789-1.json",
}


@pytest.mark.parametrize("name", KEYS)
def test_other_runs_and_commands_go_on(world: World, place: RunPlace, name: str) -> None:
    key = KEYS[name](place, world)
    if name == "report":
        entry = FileEntry(path=REPORT_JSON, size=1, sha256="0" * 64)
        reconciled = read_manifest(world.store, place.reconciliation)
        assert reconciled is not None
        manifest = reconciled.model_copy(update={"files": (entry,)})
        world.store.put(f"{place.inference}/{MANIFEST}", manifest.to_bytes())
    if not world.store.exists(key):
        world.store.put(key, b'{"schema_version": 1, "created_at": "2026')
    else:
        damage(world, key)
    before = {stored.key for stored in world.store.list()}
    shown = call(runs.runs)
    if name not in ("prepared.json", "reconciled table"):  # no part of what the table shows
        assert "EXP-1 run 1 is damaged: " in shown.output
        folder, _, file = key.rpartition("/")
        assert key in shown.output.replace("\n", "") or f"{folder}: {file}" in shown.output.replace("\n", "")
    assert "EXP-1 run 2 is damaged" not in shown.output
    collected = call(runs.gc)
    if name != "report":  # its run is finished, so that what its jobs handed over goes
        assert {stored.key for stored in world.store.list()} == before, "what may be needed stays"
    if name in ("manifest of reconciliation", "reconciled table", "manifest of preparation", "prepared.json"):
        assert "run 1 cannot be read" in collected.output
    folder = world.deployment.experiments / "EXP-1"
    assert validate(folder, world.deployment.environment) == []
    third = world.claim(3)
    assert claim_next(world.store, third, trigger={}, request_id="next").run == 4
    work = world.work(third)
    reconciliation(work)
    run_preparation(work)
    assert read_previous_splits(work) is not None, "the other run's splits are kept"
    run_training(work)


@pytest.mark.parametrize("found", ["half of it", "another run", "no time", "a time without its zone"])
def test_the_damaged_run_itself_says_what_is_wrong(world: World, place: RunPlace, found: str) -> None:
    content = world.store.get(place.claim)
    changed = {
        "half of it": content[: len(content) // 2],
        "another run": content.replace(b'"run": 1', b'"run": 3'),
        "no time": re.sub(rb'"created_at": "2', b'"created_at": "x', content),
        "a time without its zone": content.replace(b"+00:00", b""),
    }[found]
    assert changed != content
    world.store.put(place.claim, changed)
    assert "EXP-1 run 1 is damaged: " in call(runs.runs).output
    with pytest.raises(UnreadableDocument, match=r"CLAIM\.json.* take the next run number: docml run EXP-1 --next"):
        read_claim(world.store, "EXP-1", 1)
    with pytest.raises((UnreadableDocument, RunClaimed), match=r"CLAIM\.json"):
        claim_run(world.store, world.claim(5), 1, trigger={}, request_id="x")


def test_prepared_data_of_a_damaged_run_are_no_garbage(world: World, place: RunPlace) -> None:
    folder = read_prepared(world.work(world.claim(2))).folder
    for number in (1, 2):
        damage(world, f"{RunPlace('EXP-1', number).preparation}/{PREPARED}")
    call(runs.gc)
    assert world.store.exists(f"{folder}/{MANIFEST}")
