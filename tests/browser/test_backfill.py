"""A backfill over every partition of 20 experiments: 40 runs that are finished, nothing red, no job and no process for any of them."""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from playwright.sync_api import Page

from docml_assets.cli.home import prepare_dagster_home
from docml_assets.dagster_internals import about_last, checks_of
from docml_assets.definitions import defs
from docml_assets.execution import ASSETS, JOB
from docml_assets.partitions import partition_key, register
from docml_contract.names import RunPlace
from resources.store.manifests import read_manifest
from tests.browser.test_dagster_ui import SCREENSHOTS, WIDE
from tests.docml_assets.assets.materializing import materialize
from tests.docml_assets.world import World
from tests.servers.dagster_dev import DagsterDev, dagster_dev

EXPERIMENTS, RUNS = 20, (1, 2)
NAMES = [f"EXP-{number:02d}-many" for number in range(EXPERIMENTS)]
LAUNCH = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
    ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
BACKFILL = """query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status
    assetBackfillData { assetBackfillStatuses { ... on AssetPartitionsStatusCounts {
        numPartitionsTargeted numPartitionsMaterialized numPartitionsFailed } } } } } }"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def copy(world: World, instance: dg.DagsterInstance, name: str) -> None:
    """The first experiment's runs again under another name: in the store, and as this Dagster instance knows them."""
    source, target = world.root / "storage" / NAMES[0], world.root / "storage" / name
    shutil.copytree(source, target)
    for path in target.rglob("*.json"):
        path.write_text(path.read_text().replace(NAMES[0], name))
    for path in target.rglob("MANIFEST.json"):
        manifest = json.loads(path.read_text())
        for entry in manifest["files"]:
            data = (path.parent / entry["path"]).read_bytes()
            entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        path.write_text(json.dumps(manifest))
    for run in RUNS:
        key = register(instance, name, run)
        manifest = read_manifest(world.store, RunPlace(name, run).inference)
        assert manifest is not None
        tags = {"dagster/data_version": manifest.data_version}
        for asset, _ in ASSETS:
            instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=key, tags=tags))
        for check in checks_of(defs.resolve_job_def(JOB)):
            finding = dg.AssetCheckEvaluation(check.asset_key, check.name, passed=True, partition=key)
            instance.report_runless_asset_event(about_last(instance, finding))


def ended(dev: DagsterDev, backfill: str) -> dict[str, Any]:
    """The backfill once it has ended."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = dev.query(BACKFILL, id=backfill)["partitionBackfillOrError"]
        return found if found["status"] != "REQUESTED" else None

    found: dict[str, Any] = dev.wait_for(look, "the backfill ends", 1200)
    return found


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterDev]:
    """The UI over a home that knows 40 finished runs. Made before a browser starts, beside whose event loop Dagster could not run."""
    root = tmp_path_factory.mktemp("backfill")
    world = World(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(root / "home"))
        prepare_dagster_home()
        with dg.DagsterInstance.get() as instance:
            for name in NAMES:
                world.write_experiment(name, run_num=2)
            for run in RUNS:
                world.claim(run, NAMES[0])
                assert materialize(world, instance, run, experiment=NAMES[0]).success
            for name in NAMES[1:]:
                copy(world, instance, name)
    with dagster_dev(root / "home", world.environment) as started:
        yield started


def test_a_backfill_over_everything_ends_green_and_launches_nothing(dev: DagsterDev, page: Page) -> None:
    storage = Path(dev.environment["DOCML_STORE"])
    files = sorted(path for path in storage.rglob("*") if path.is_file())
    params = {
        "assetSelection": [{"path": [asset]} for asset, _ in ASSETS],
        "partitionNames": [partition_key(name, run) for name in NAMES for run in RUNS],
    }
    begun = time.monotonic()
    backfill = dev.query(LAUNCH, params=params)["launchPartitionBackfill"]["backfillId"]
    found = ended(dev, backfill)
    print(f"the backfill took {time.monotonic() - begun:.0f} s")
    assert found["status"] == "COMPLETED_SUCCESS"
    counts = found["assetBackfillData"]["assetBackfillStatuses"]
    assert [tuple(each.values()) for each in counts] == [(40, 40, 0)] * len(ASSETS)
    runs = [run for run in dev.runs() if run["tags"].get("dagster/backfill") == backfill]
    assert Counter(run["status"] for run in runs) == {"SUCCESS": 40}
    assert sorted(path for path in storage.rglob("*") if path.is_file()) == files
    for asset, _ in ASSETS:
        checks = dev.checks(asset)
        checks.pop("production_unchanged", None)  # it looks at production, and a backfill does not
        assert [found for found in checks.values() if found != {"succeeded": 40}] == [], asset
    page.set_viewport_size(WIDE)
    page.goto(f"{dev.url}/runs?show_runs_within_backfills=true")
    page.wait_for_timeout(3000)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "backfill.png")
