"""Preparation as a step: one job for equal inputs, assignments that outlive runs."""

import pytest

from docml_assets.steps.preparation import read_prepared, run_preparation
from docml_assets.steps.reconciliation import reconciliation
from docml_assets.steps.reuse import read_previous_splits
from docml_assets.steps.work import NothingToReuse, NotReady, Outcome, Work
from docml_assets.tables import read_parquet
from docml_contract.base import IncompleteArtifact, UnreadableDocument
from docml_contract.jobs import PrepareTask
from docml_contract.names import (
    ARTIFACTS_TABLE,
    LABEL_ROWS,
    MANIFEST,
    PREVIOUS_SPLITS,
    RECONCILED_TABLE,
    SPLITS_TABLE,
    RunPlace,
)
from tests.docml_assets.world import SOURCE, FakeJobs, World


def prepare(work: Work) -> Outcome:
    reconciliation(work)
    outcome = run_preparation(work)
    assert outcome is not None
    return outcome


def test_equal_inputs_launch_no_second_job(world: World) -> None:
    world.write_experiment(hyperparameters={"epochs": 1, "width": 3})
    claim = world.claim(1)
    part = f"{RunPlace(claim.experiment, 1).encoded_parts}/0/rows-0-1.arrow"
    world.store.put(part, b"of an attempt that was killed")
    first = prepare(world.work(claim))
    assert not world.store.exists(part), "prepared data that are published need it no more"
    assert (first.how, first.reused_from, len(first.jobs)) == ("made", None, 1)
    world.write_experiment(hyperparameters={"epochs": 2, "width": 3}, source="# a comment\n" + SOURCE)
    jobs = FakeJobs(world.store)
    work = world.work(world.claim(2), jobs)
    second = prepare(work)
    assert jobs.ran == []
    assert (second.how, second.reused_from, second.data_version) == ("reused", 1, first.data_version)
    assert "no job was launched" in second.why
    again = run_preparation(work)
    assert again is not None
    assert (again.how, again.data_version, again.reused_from) == ("finished", first.data_version, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"hyperparameters": {"epochs": 1, "width": 4}},
        {"split_seed": 14},
        {"ignored_labels": "letter"},
        {"split_by": "customer"},
        {"source": SOURCE.replace('"ids": [1]', '"ids": [2]')},
    ],
)
def test_what_decides_the_rows_needs_a_job(world: World, change: dict[str, object]) -> None:
    base = {"hyperparameters": {"epochs": 1, "width": 3}}
    world.write_experiment(**base)  # type: ignore[arg-type]
    prepare(world.work(world.claim(1)))
    world.write_experiment(**{**base, **change})  # type: ignore[arg-type]
    jobs = FakeJobs(world.store)
    second = prepare(world.work(world.claim(2), jobs))
    assert jobs.ran == ["preparation"]
    assert second.reused_from is None


def test_new_documents_keep_the_old_ones_where_they_were(world: World) -> None:
    world.write_experiment()
    work = world.work(world.claim(1))
    prepare(work)
    before = splits(work)
    world.add_document("doc-aa-new", "letter")
    jobs = FakeJobs(world.store)
    second = world.work(world.claim(2), jobs)
    prepare(second)
    sent = read_parquet(jobs.files[0][PREVIOUS_SPLITS])
    assert dict(zip(sent["artifact_guid"].to_pylist(), sent["split"].to_pylist(), strict=True)) == before
    assert read_prepared(second).folder != read_prepared(work).folder
    after = splits(second)
    assert {guid: after[guid] for guid in before} == before
    assert set(after) - set(before) == {"doc-aa-new"}


def test_another_split_starts_anew(world: World) -> None:
    world.write_experiment()
    prepare(world.work(world.claim(1)))
    world.write_experiment(split="0.6, 0.2, 0.2")
    assert read_previous_splits(world.work(world.claim(2))) is None


def splits(work: Work) -> dict[str, str]:
    table = read_parquet(work.store.get(f"{read_prepared(work).folder}/{SPLITS_TABLE}"))
    return dict(zip(table["artifact_guid"].to_pylist(), table["split"].to_pylist(), strict=True))


@pytest.mark.parametrize("column", ["customer", "Customer"])
def test_the_job_gets_the_input_files_with_their_groups(world: World, column: str) -> None:
    """The column is found as validation finds it: databases differ in the case that they give back."""
    world.write_experiment(split_by=column)
    jobs = FakeJobs(world.store)
    prepare(world.work(world.claim(1), jobs))
    rows = read_parquet(jobs.files[0][ARTIFACTS_TABLE]).to_pylist()
    (channel,) = jobs.specs[0].channels
    assert channel.prefix == "EXP-1/data/reconciled_artifacts"
    assert channel.files == tuple(row["path"] for row in rows)
    assert all(world.store.exists(f"{channel.prefix}/{path}") for path in channel.files)
    assert {row["artifact_guid"]: row["group"] for row in rows}["doc-03"] == "customer-1"


def test_several_machines_encode_shards_and_one_merges_them(world: World) -> None:
    world.write_experiment(preparation_instance_count=2)
    jobs = FakeJobs(world.store)
    outcome = prepare(world.work(world.claim(1), jobs))
    assert jobs.ran == ["preparation", "preparation-merge"]
    shard, merge = jobs.specs
    assert (shard.compute.instance_count, merge.compute.instance_count) == (2, 1)
    assert merge.channels[0].prefix == outcome.jobs[0].output_prefix


def test_damaged_prepared_data_are_made_again_by_the_next_run_and_an_error_in_the_run_that_uses_them(
    world: World,
) -> None:
    world.write_experiment()
    work = world.work(world.claim(1))
    prepare(work)
    world.store.delete([f"{read_prepared(work).folder}/{SPLITS_TABLE}"])
    with pytest.raises(IncompleteArtifact, match=SPLITS_TABLE):
        run_preparation(work)
    following = world.work(world.claim(2))
    assert prepare(following).how == "made"
    assert read_prepared(following).folder != read_prepared(work).folder, "a damaged folder is left as it is"
    assert (again := run_preparation(following)) is not None
    assert again.how == "finished"


def test_turned_off_it_needs_equal_inputs(world: World) -> None:
    world.write_experiment()
    prepare(world.work(world.claim(1)))
    same = world.work(world.claim(2), performed=frozenset({"training"}))
    taken = prepare(same)
    assert (taken.how, taken.reused_from) == ("reused", 1)
    world.write_experiment(hyperparameters={"epochs": 1, "width": 9})
    other = world.work(world.claim(3), performed=frozenset({"training", "reconciliation"}))
    reconciliation(other)
    with pytest.raises(NothingToReuse, match="RUN_PREPARATION"):
        run_preparation(other)
    nobody = world.work(world.claim(4), performed=frozenset({"reconciliation"}))
    reconciliation(nobody)
    assert run_preparation(nobody) is None


def test_without_reconciled_data_it_says_what_to_materialize(world: World) -> None:
    world.write_experiment()
    with pytest.raises(NotReady, match="materialize reconciled_data"):
        run_preparation(world.work(world.claim(1)))


def test_the_job_gets_what_a_pattern_matches_and_every_artifact_even_without_a_file(world: World) -> None:
    for number in (10, 2):
        (world.root / f"production/doc-03/page_{number}.png").write_bytes(b"page")
    world.write_experiment(
        files_from_prod="raw_text.json, page_*.png", files_optional="page_*.png", model_input_files="page_*.png"
    )
    jobs = FakeJobs(world.store)
    prepare(world.work(world.claim(1), jobs))
    rows = read_parquet(jobs.files[0][ARTIFACTS_TABLE]).to_pylist()
    assert [row["file"] for row in rows if row["artifact_guid"] == "doc-03"] == ["page_10.png", "page_2.png"]
    bare = [row for row in rows if row["artifact_guid"] != "doc-03"]
    assert len(bare) == 23
    assert {(row["file"], row["path"], row["etag"]) for row in bare} == {(None, None, None)}
    assert {row["label"] for row in bare} == {"invoice", "letter"}
    (channel,) = jobs.specs[0].channels
    assert channel.files is not None
    assert len(channel.files) == 2
    task = jobs.specs[0].task
    assert isinstance(task, PrepareTask)
    assert (task.model_input_files, task.optional_files) == (("page_*.png",), ("page_*.png",))


def test_prepared_data_that_vanished_are_made_again_and_the_next_run_works(world: World) -> None:
    world.write_experiment()
    work = world.work(world.claim(1))
    made = prepare(work)
    note = read_prepared(work)
    store = world.store
    store.delete([stored.key for stored in store.list(note.folder)])
    world.write_experiment(split_seed=13, hyperparameters={"epochs": 1, "width": 4})
    later = world.work(world.claim(2))
    prepare(later)
    assert any("the splits of run 1 cannot be read and are not kept" in text for text in later.reporter.said)  # type: ignore[attr-defined]

    jobs = FakeJobs(store)
    again = run_preparation(world.work(world.claim(1), jobs))
    assert again is not None
    assert (again.how, again.data_version, jobs.ran) == ("made", made.data_version, ["preparation"])
    assert read_prepared(work) == note
    finished = run_preparation(work)
    assert finished is not None
    assert finished.how == "finished"


def test_a_damaged_manifest_is_no_absence_and_the_remedy_works(world: World) -> None:
    world.write_experiment()
    work = world.work(world.claim(1))
    made = prepare(work)
    folder = read_prepared(work).folder
    store = world.store
    key = f"{folder}/{MANIFEST}"
    content = bytearray(store.get(key))
    content[0] ^= 1
    store.put(key, bytes(content))
    with pytest.raises(
        UnreadableDocument, match=rf"or remove the folder {store.uri(folder)} and execute the run again"
    ):
        run_preparation(work)
    next_run = world.work(world.claim(2))
    prepare(next_run)
    assert any("prepared data cannot be reused" in text for text in next_run.reporter.said)  # type: ignore[attr-defined]
    store.delete([stored.key for stored in store.list(folder)])  # the remedy
    again = run_preparation(work)
    assert again is not None
    assert (again.how, again.data_version) == ("made", made.data_version)


def damaged_document(world: World) -> str:
    """The key of a reconciled document."""
    return next(stored.key for stored in world.store.list("EXP-1/data/reconciled_artifacts"))


def test_reconciled_documents_that_vanished_are_copied_again(world: World) -> None:
    world.write_experiment()
    work = world.work(world.claim(1))
    reconciliation(work)
    key = damaged_document(world)
    content = world.store.get(key)
    world.store.delete([key])
    assert run_preparation(work) is not None
    assert world.store.get(key) == content
    assert any("1 files below" in text and "are gone" in text for text in work.reporter.said)  # type: ignore[attr-defined]


def test_reconciled_documents_that_cannot_be_copied_again_are_named(world: World) -> None:
    world.write_experiment()
    work = world.work(world.claim(1))
    reconciliation(work)
    key = damaged_document(world)
    guid = key.split("/")[-3]
    world.store.delete([key])
    (world.root / "production" / guid / "raw_text.json").write_text('{"text": "another one"}')
    with pytest.raises(IncompleteArtifact, match=rf"1 reconciled files are gone, .*{key} .* take the next run number"):
        run_preparation(work)
    again = world.work(world.claim(2))
    prepare(again)


def test_a_document_of_another_size_is_damage_and_the_remedy_works(world: World) -> None:
    world.write_experiment()
    work = world.work(world.claim(1))
    reconciliation(work)
    key = damaged_document(world)
    content = world.store.get(key)
    world.store.put(key, content[:-1])
    with pytest.raises(
        IncompleteArtifact, match=rf"{key}: .* it is damaged. Remove it from the store and execute the run again"
    ):
        run_preparation(work)
    world.store.delete([key])
    assert run_preparation(work) is not None
    assert world.store.get(key) == content


def test_a_table_with_a_flipped_bit_is_not_read(world: World) -> None:
    world.write_experiment()
    work = world.work(world.claim(1))
    reconciliation(work)
    for name in (LABEL_ROWS, RECONCILED_TABLE):
        key = f"{work.place.reconciliation}/{name}"
        content = world.store.get(key)
        world.store.put(key, content[:9] + bytes([content[9] ^ 1]) + content[10:])
        with pytest.raises(
            IncompleteArtifact,
            match=rf"{name}: content differs .* remove the folder \S+/reconciliation and execute the run",
        ):
            run_preparation(work)
        world.store.put(key, content)
