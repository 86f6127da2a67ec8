"""experiment_snapshot: who may claim a run from the UI, and what is frozen."""

import pytest

from docml_assets.errors import ProblemsError
from docml_assets.runs.claims import Claim, ClaimSwapped
from docml_assets.steps.snapshot import (
    claim_from_ui,
    existing_claim,
    snapshot,
)
from docml_assets.steps.work import UnclaimedRun
from docml_contract.base import ContractError
from docml_contract.names import RunPlace
from tests.docml_assets.world import World


def from_ui(world: World, run: int, name: str = "EXP-1", *, backfill: bool = False) -> int:
    deployment = world.deployment
    claim = claim_from_ui(
        world.store,
        RunPlace(name, run),
        deployment.experiment_folder(name),
        world.environment,
        holder="dagster-run",
        trigger={"kind": "ui"},
        backfill=backfill,
    )
    return claim.run


def test_run_num_and_the_next_free_number_are_claimed_and_any_other_run_refused(world: World) -> None:
    world.write_experiment(run_num=2)
    assert from_ui(world, 2) == 2
    assert from_ui(world, 2) == 2
    with pytest.raises(
        UnclaimedRun,
        match=r"RUN_NUM \(2\) or the next free number \(3\)\. Choose run 3, or set RUN_NUM = 4 .* --run 4`",
    ):
        from_ui(world, 4)
    assert from_ui(world, 3) == 3
    with pytest.raises(UnclaimedRun, match=r"next free number \(4\)"):
        from_ui(world, 1)


def test_a_backfill_claims_run_num_only(world: World) -> None:
    folder = world.write_experiment(run_num=2)
    for run in (1, 3):
        with pytest.raises(UnclaimedRun, match="is not claimed"):
            from_ui(world, run, backfill=True)
    assert from_ui(world, 2, backfill=True) == 2
    (folder / "settings.ini").write_text("nonsense")
    assert from_ui(world, 2, backfill=True) == 2
    with pytest.raises(UnclaimedRun, match=r"its folder cannot be read: .*settings\.ini"):
        from_ui(world, 1, backfill=True)


@pytest.mark.parametrize("name", ["settings.json", "user_defined_funcs.py", "MANIFEST.json"])
def test_a_damaged_file_of_a_snapshot_is_said_and_the_remedy_keeps_the_claim(world: World, name: str) -> None:
    folder = world.write_experiment()
    claim = world.claim(1)
    made = snapshot(world.store, claim)
    place = claim.place
    world.store.put(f"{place.snapshot}/{name}", b"{")
    with pytest.raises(
        ContractError, match=rf"remove all files but CLAIM\.json from the folder {world.store.uri(place.snapshot)} and"
    ):
        snapshot(world.store, existing_claim(world.store, place))
    (folder / "settings.ini").write_text("nonsense")
    world.store.delete([found.key for found in world.store.list(place.snapshot) if found.key != place.claim])
    assert snapshot(world.store, existing_claim(world.store, place)).data_version == made.data_version


def test_a_claimed_run_needs_no_folder(world: World) -> None:
    folder = world.write_experiment()
    world.claim(1)
    (folder / "settings.ini").write_text("nonsense")
    assert from_ui(world, 1) == 1


def test_no_folder_and_mistakes_are_refused_before_anything_is_claimed(world: World) -> None:
    with pytest.raises(UnclaimedRun, match="docml new EXP-9"):
        from_ui(world, 1, "EXP-9")
    world.write_experiment(epochs=3, model_names="a_b")
    with pytest.raises(ProblemsError, match=r"settings\.ini"):
        from_ui(world, 1)
    with pytest.raises(UnclaimedRun, match="not claimed"):
        existing_claim(world.store, RunPlace("EXP-1", 1))


def test_the_snapshot_is_written_once_from_the_claim(world: World) -> None:
    world.write_experiment()
    claim = world.claim(1)
    made = snapshot(world.store, claim)
    again = snapshot(world.store, claim)
    assert (made.how, again.how) == ("made", "finished")
    assert made.data_version == again.data_version
    assert {entry.path for entry in made.manifest.files} == {"settings.ini", "settings.json", "user_defined_funcs.py"}


def swap(world: World, **fields: str) -> None:
    """Change CLAIM.json in the store, as somebody does who may write there."""
    key = RunPlace("EXP-1", 1).claim
    claim = Claim.from_bytes(world.store.get(key), key)
    world.store.put(key, claim.model_copy(update=fields).to_bytes())


@pytest.mark.parametrize("field", ["functions_source", "settings_text"])
def test_a_claim_that_was_changed_after_the_snapshot_is_refused(world: World, field: str) -> None:
    world.write_experiment()
    claim = world.claim(1)
    snapshot(world.store, claim)
    assert existing_claim(world.store, claim.place) == claim
    swap(world, **{field: getattr(claim, field) + "\n# swapped"})
    with pytest.raises(
        ClaimSwapped, match=r"CLAIM.json does not hold what run 1 was claimed with .* in the snapshot's manifest"
    ):
        existing_claim(world.store, claim.place)


def test_a_claim_that_was_changed_with_its_snapshot_is_told_by_the_event_log(world: World) -> None:
    world.write_experiment()
    claim = world.claim(1)
    swap(world, functions_source=claim.functions_source + "\n# swapped")
    swapped = existing_claim(world.store, claim.place)
    snapshot(world.store, swapped)
    with pytest.raises(ClaimSwapped, match="another hash in Dagster's event log"):
        existing_claim(world.store, claim.place, claim.digest)
    assert existing_claim(world.store, claim.place, swapped.digest) == swapped
