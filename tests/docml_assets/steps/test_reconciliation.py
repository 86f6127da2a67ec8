"""Reconciliation as a step: done once, verified afterwards, reused where it is turned off."""

import shutil

import pytest

from docml_assets.steps.reconciliation import (
    files_version,
    label_counts,
    read_counts,
    read_findings,
    reconciliation,
    versions,
)
from docml_assets.steps.work import NothingToReuse
from docml_contract.base import IncompleteArtifact
from docml_contract.names import PRODUCTION_FILES, PRODUCTION_LABELS, RECONCILED_TABLE
from resources.errors import LabelError
from tests.docml_assets.world import World
from tests.servers.s3 import free_ports


def test_a_finished_step_is_verified_without_looking_at_production(world: World) -> None:
    world.write_experiment()
    claim = world.claim(1)
    made = reconciliation(world.work(claim))
    assert made is not None
    assert made.how == "made"
    assert set(made.inputs) == {"production_labels", "production_files"}
    shutil.rmtree(world.root / "production")
    (world.root / "labels.sqlite").unlink()
    again = reconciliation(world.work(claim))
    assert again is not None
    assert (again.how, again.data_version, again.inputs) == ("finished", made.data_version, made.inputs)


def test_a_damaged_artifact_is_an_error_that_names_the_file(world: World) -> None:
    world.write_experiment()
    claim = world.claim(1)
    reconciliation(world.work(claim))
    world.store.put(f"{claim.place.reconciliation}/{RECONCILED_TABLE}", b"other")
    with pytest.raises(IncompleteArtifact, match=RECONCILED_TABLE):
        reconciliation(world.work(claim))


def test_documents_that_do_not_fit_are_counted_and_left_out(world: World) -> None:
    world.add_label("doc-without-files", "letter")
    (world.root / "production" / "doc-without-label").mkdir()
    (world.root / "production" / "doc-without-label" / "raw_text.json").write_text("{}")
    world.add_document("doc-copy", "letter", file_hash="same")
    world.add_document("doc-copy-2", "letter", file_hash="same")
    world.write_experiment()
    claim = world.claim(1)
    reconciliation(world.work(claim))
    findings = read_findings(world.work(claim))
    assert findings.funnel["labels without files"] == 1
    assert findings.funnel["artifacts without labels"] == 1
    assert findings.funnel["duplicates"] == 1
    counts = label_counts(world.work(claim))
    assert counts.how == "made"
    assert read_counts(world.work(claim)) == {"letter": 13, "invoice": 12}


def test_turned_off_it_takes_the_newest_earlier_run_with_the_same_query(world: World) -> None:
    world.write_experiment()
    first, second = world.claim(1), world.claim(2)
    made = [reconciliation(world.work(claim)) for claim in (first, second)]
    third = world.claim(3)
    world.add_document("doc-new", "letter")
    taken = reconciliation(world.work(third, performed=frozenset({"preparation"})))
    assert taken is not None
    assert made[1] is not None
    assert (taken.how, taken.reused_from, taken.data_version) == ("reused", 2, made[1].data_version)
    later = reconciliation(world.work(third))
    assert later is not None
    assert (later.how, later.reused_from) == ("finished", 2)


def test_turned_off_with_nothing_to_take_fails_only_where_it_is_needed(world: World) -> None:
    world.write_experiment()
    reconciliation(world.work(world.claim(1)))
    world.write_experiment(labels_query="SELECT artifact_guid, label, file_hash FROM labels")
    claim = world.claim(2)
    with pytest.raises(NothingToReuse, match="RUN_RECONCILIATION = true"):
        reconciliation(world.work(claim, performed=frozenset({"preparation"})))
    assert reconciliation(world.work(claim, performed=frozenset())) is None


def test_only_what_the_experiment_reads_counts(world: World) -> None:
    production = world.deployment.production
    before = files_version(production, ["raw_text.json"])
    (world.root / "production" / "doc-00" / "page_01.png").write_bytes(b"png")
    assert files_version(production, ["raw_text.json"]) == before
    assert files_version(production, ["raw_text.json", "page_01.png"]) != before
    pages = files_version(production, ["raw_text.json", "page_*.png"])
    assert pages != before
    (world.root / "production" / "doc-00" / "page_10.png").write_bytes(b"png")
    assert files_version(production, ["raw_text.json", "page_*.png"]) != pages
    (world.root / "production" / "doc-00" / "raw_text.json").write_text("{}")
    assert files_version(production, ["raw_text.json"]) != before


def test_labels_and_files_have_versions_of_their_own(world: World) -> None:
    world.write_experiment()
    settings = world.claim(1).settings
    deployment = world.deployment
    before = versions(settings, deployment.labels, deployment.production)
    world.add_label("doc-without-files", "letter")
    after = versions(settings, deployment.labels, deployment.production)
    assert after[PRODUCTION_LABELS] != before[PRODUCTION_LABELS]
    assert after[PRODUCTION_FILES] == before[PRODUCTION_FILES]


def test_a_label_database_that_went_away_is_one_message_and_the_next_run_goes_on(world: World) -> None:
    world.write_experiment()
    claim = world.claim(1)
    url = world.environment["DOCML_LABELS_URL"]
    (gone,) = free_ports(1)
    world.environment["DOCML_LABELS_URL"] = f"postgresql://reader:secret@127.0.0.1:{gone}/labels"
    before = {stored.key for stored in world.store.list()}
    with pytest.raises(LabelError) as refused:
        reconciliation(world.work(claim))
    assert "secret" not in str(refused.value)
    assert "connection" in str(refused.value).lower()
    assert {stored.key for stored in world.store.list()} == before
    world.environment["DOCML_LABELS_URL"] = url
    assert reconciliation(world.work(claim)) is not None
