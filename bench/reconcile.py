"""Planning at the scale of a production bucket: a million labels in PostgreSQL and a million keys on a server with 30 ms a page,
fetched, listed, joined, deduplicated and compared with what exists. Targets: 60 s, 1 GB; nothing to do is no slower."""

import json
import statistics
import subprocess
import sys
from typing import Any

from bench._synthetic_s3 import ETAG, FILE, guids, synthetic_s3
from docml_assets.reconcile.plan import Recipe, make_plan
from tests.servers.postgres import PostgresServer, postgres

COUNT = 1_000_000
REPEATS = 3
RECIPE = Recipe((FILE,), (FILE,), None, None)
QUERY = "SELECT artifact_guid, label, file_hash FROM labels"

_MEASURE = """
import json, resource, sys, time
from bench._synthetic_s3 import BASE
from bench.reconcile import QUERY, RECIPE
from docml_assets.reconcile.copies import Sources
from docml_assets.reconcile.plan import to_copy
from resources.labels import LabelSource
from resources.store import Store

url, environment = sys.argv[1], json.loads(sys.argv[2])
started = time.perf_counter()
production = Store.open("s3://production", environment=environment)
store = Store.open("s3://research", environment=environment)
sources = Sources(LabelSource(url, {}), QUERY, None, production, store, BASE, RECIPE)
listings = sources.ask()
existing = sources.list_existing()
plan, _ = sources.plan(listings)
missing = to_copy(plan, existing)
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([plan.files.height, missing.height, seconds, peak]))
"""


def measure(server: PostgresServer, environment: dict[str, str]) -> tuple[int, int, float, float]:
    """(planned files, files to copy, seconds, peak MB), in a process of its own."""
    command = [sys.executable, "-c", _MEASURE, server.url, json.dumps(environment)]
    planned, missing, seconds, peak = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return planned, missing, seconds, peak


def load_labels(server: PostgresServer, names: list[str]) -> None:
    """A label for every artifact; every hundredth shares another's file hash."""
    import psycopg2
    from psycopg2.extras import execute_values

    connection = psycopg2.connect(server.url)
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE labels (artifact_guid text, label text, file_hash text)")
        rows = ((name, f"label {i // 100 % 40}", f"{i - (i % 100 == 99):064x}") for i, name in enumerate(names))
        execute_values(cursor, "INSERT INTO labels VALUES %s", rows, page_size=10_000)
    connection.close()


def existing_version() -> str:
    """The one version that all artifacts have on the synthetic server: their source versions are equal."""
    import polars as pl

    rows = pl.DataFrame({"artifact_guid": ["g"], "label": ["l"], "file_hash": ["h"]})
    files = pl.DataFrame({"artifact_guid": ["g"], "file": [FILE], "size": [1], "source_etag": [ETAG]})
    return str(make_plan(rows, files, RECIPE).artifacts["version"][0])


def run() -> list[dict[str, Any]]:
    names = guids(COUNT)
    expected = COUNT - COUNT // 100
    taken: dict[str, list[tuple[int, int, float, float]]] = {"first": [], "again": []}
    with (
        postgres() as server,
        synthetic_s3(0.03, COUNT) as empty,
        synthetic_s3(0.03, COUNT, existing_version()) as full,
    ):
        load_labels(server, names)
        del names
        for _ in range(REPEATS):
            taken["first"].append(measure(server, empty))
            taken["again"].append(measure(server, full))
    assert {(planned, missing) for planned, missing, _, _ in taken["first"]} == {(expected, expected)}
    assert {(planned, missing) for planned, missing, _, _ in taken["again"]} == {(expected, 0)}
    row = {"bench": "reconcile", "peers": {}, "ratio": None}
    first, again = (statistics.median(seconds for _, _, seconds, _ in taken[name]) for name in taken)
    return [
        {**row, "metric": "plan of 1,000,000 labels x 1,000,000 keys (below 60)", "unit": "s", "ours": first},
        {**row, "metric": "the same with nothing to do (below 60)", "unit": "s", "ours": again},
        {
            **row,
            "metric": "peak memory of both (below 1,000)",
            "unit": "MB",
            "ours": max(peak for name in taken for _, _, _, peak in taken[name]),
        },
    ]
