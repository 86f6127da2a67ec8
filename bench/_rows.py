"""A benchmark's rows. A module of its own, because a spawned process cannot import a package's `__main__`."""

import importlib
from typing import Any

KEYS = {"bench", "metric", "unit", "ours", "peers", "ratio"}
Row = dict[str, Any]


def rows_of(name: str) -> list[Row]:
    """Run one benchmark. ValueError if its rows are not rows."""
    rows: list[Row] = importlib.import_module(f"bench.{name}").run()
    for row in rows:
        if set(row) != KEYS or row["bench"] != name:
            raise ValueError(f"bench {name}: found a row {row}; expected the keys {sorted(KEYS)} and bench = {name!r}")
    return rows
