"""The UI's pages and the code location at 200 experiments with 50 runs each, all of them materialized.

`python -m bench dagster_pages`. Targets are absolute and there is no peer: the definitions load within 1.5 s of `import dagster`, and a
page's query answers within a second. Queries are asked of a real `dagster dev`; medians of 5.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from docml_assets.partitions import EXPERIMENT_RUN, partition_key
from tests.servers.dagster_dev import DagsterDev, dagster_dev

EXPERIMENTS, RUNS, REPEATS = 200, 50, 5
ASSET = "inference_report"
NODE = f'assetNodeOrError(assetKey: {{path: ["{ASSET}"]}}) {{ ... on AssetNode {{ %s }} }}'
PAGES = {
    "partitions page": "partitionStats { numMaterialized } assetPartitionStatuses { ... on DefaultPartitionStatuses { "
    "materializedPartitions failedPartitions unmaterializedPartitions } }",
    "partition dialog": "partitionKeysByDimension { name partitionKeys }",
    "asset page": "assetMaterializations(limit: 100) { partition runId timestamp metadataEntries { label } } "
    'staleStatus(partition: "EXP-100|25")',
}
LINEAGE = (
    "{ assetNodes { assetKey { path } dependencyKeys { path } staleStatus assetMaterializations(limit: 1) { runId } } }"
)


def run() -> list[dict[str, Any]]:
    """The rows of this benchmark."""
    return [*_loading(), *_pages()]


def _row(metric: str, seconds: float) -> dict[str, Any]:
    return {"bench": "dagster_pages", "metric": metric, "unit": "s", "ours": seconds, "peers": {}, "ratio": None}


def _loading() -> Iterator[dict[str, Any]]:
    code = (
        "import time; t = time.perf_counter(); import dagster; u = time.perf_counter(); import docml_assets.definitions; "
        "print(time.perf_counter() - u)"
    )
    found = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(REPEATS)
    ]
    yield _row("definitions loaded, beyond import dagster (target 1.5)", statistics.median(found))


def _pages() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        _fill(home)
        with dagster_dev(
            home, {"DOCML_STORE": f"{folder}/storage", "DOCML_EXPERIMENTS": f"{folder}/experiments"}
        ) as dev:
            for page, fields in PAGES.items():
                seconds = _median(dev, "{ " + NODE % fields + " }")
                yield _row(f"{page}, {EXPERIMENTS} experiments x {RUNS} runs (target 1)", seconds)
            yield _row(f"lineage, {EXPERIMENTS} experiments x {RUNS} runs (target 1)", _median(dev, LINEAGE))


def _fill(home: Path) -> None:
    names = [f"EXP-{number}" for number in range(1, EXPERIMENTS + 1)]
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        for name in names:
            keys = [partition_key(name, number) for number in range(1, RUNS + 1)]
            instance.add_dynamic_partitions(EXPERIMENT_RUN, keys)
            for number, key in enumerate(keys):
                event = dg.AssetMaterialization(ASSET, partition=key, metadata={"f1_macro": 0.5 + number / 200})
                instance.report_runless_asset_event(event)


def _median(dev: DagsterDev, query: str) -> float:
    dev.query(query)
    found = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        dev.query(query)
        found.append(time.perf_counter() - begun)
    return statistics.median(found)
