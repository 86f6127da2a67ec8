"""The versions of production as an experiment sees it."""

from docml_assets.steps.production import files_version, versions
from docml_contract.names import PRODUCTION_FILES, PRODUCTION_LABELS
from tests.docml_assets.world import World


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
