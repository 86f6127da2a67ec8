"""The label table from PostgreSQL: `LabelSource.fetch` against pandas.read_sql, time and peak memory, each in a process of its own."""

import json
import statistics
import subprocess
import sys
from typing import Any

from tests.servers.postgres import postgres

ROWS = 500_000
REPEATS = 3
QUERY = "SELECT artifact_guid, label, file_hash FROM labels"
TABLE = (
    "CREATE TABLE labels AS SELECT md5(i::text)::uuid::text AS artifact_guid, 'label ' || i % 40 AS label, "
    "md5(i::text || 'x') || md5(i::text || 'y') AS file_hash FROM generate_series(1, {rows}) i"
)

# Each is warm: imports are not what is measured.
_OURS = (
    "from resources.labels import LabelSource\nfetch = lambda: LabelSource(url, {}).fetch(query).num_rows\n"
    "LabelSource(url, {}).fetch('SELECT 1 AS one')"
)
_PANDAS = (
    "import pandas, sqlalchemy\nengine = sqlalchemy.create_engine(url.replace('postgresql://', 'postgresql+psycopg2://'))\n"
    "fetch = lambda: len(pandas.read_sql(query, engine))\n"
    "pandas.read_sql('SELECT 1 AS one', engine)"
)
_MEASURE = (
    "import json, resource, sys, time\nurl, query = sys.argv[1:]\n{body}\n"
    "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nstarted = time.perf_counter()\nrows = fetch()\n"
    "seconds = time.perf_counter() - started\n"
    "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\nprint(json.dumps([rows, seconds, peak / 1024]))\n"
)


def measure(body: str, url: str) -> tuple[float, float]:
    """Seconds, and MB of memory on top of the imports."""
    command = [sys.executable, "-c", _MEASURE.format(body=body), url, QUERY]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows, seconds, megabytes = json.loads(output)
    assert rows == ROWS
    return seconds, megabytes


def run() -> list[dict[str, Any]]:
    with postgres() as server:
        server.execute(TABLE.format(rows=ROWS))
        taken: dict[str, list[tuple[float, float]]] = {"ours": [], "pandas.read_sql": []}
        for _ in range(REPEATS):
            taken["ours"].append(measure(_OURS, server.url))
            taken["pandas.read_sql"].append(measure(_PANDAS, server.url))
    rows = []
    for position, (metric, unit) in enumerate([("500,000 label rows", "s"), ("memory for 500,000 label rows", "MB")]):
        mine, theirs = (statistics.median(values[position] for values in taken[name]) for name in taken)
        rows.append(
            {
                "bench": "label_fetch",
                "metric": metric,
                "unit": unit,
                "ours": mine,
                "peers": {"pandas.read_sql": theirs},
                "ratio": theirs / mine,
            }
        )
    return rows
