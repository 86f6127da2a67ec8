"""Listing keys: `Store.list_table` against a boto3 paginator and s5cmd, on SeaweedFS and on a server with 30 ms a page."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench._synthetic_s3 import FILE, guids, synthetic_s3
from bench.copies import _client
from docml_assets.reconcile.copies import SHARDS
from resources.store import Store
from tests.servers.s3 import seaweedfs

REPEATS = 3
KEYS = {"SeaweedFS": 10_000, "30 ms a page": 100_000}


def ours(shards: int) -> Callable[[Mapping[str, str]], int]:
    def run(environment: Mapping[str, str]) -> int:
        return int(Store.open("s3://production", environment=environment).list_table("", shards).num_rows)

    return run


def paginator(environment: Mapping[str, str]) -> int:
    pages = _client(environment, 10).get_paginator("list_objects_v2").paginate(Bucket="production")
    return sum(
        len([(entry["Key"], entry["Size"], entry["ETag"]) for entry in page.get("Contents", [])]) for page in pages
    )


def s5cmd(environment: Mapping[str, str]) -> int:
    command = [str(Path(sys.executable).parent / "s5cmd"), "--endpoint-url", environment["AWS_ENDPOINT_URL_S3"]]
    output = subprocess.run(
        [*command, "ls", "s3://production/*"], env=dict(environment), check=True, capture_output=True
    )
    return output.stdout.count(b"\n")


LISTERS = {"ours": ours(SHARDS), "one stream": ours(1), "boto3 paginator": paginator, "s5cmd": s5cmd}


def measure(where: str, environment: Mapping[str, str]) -> list[dict[str, Any]]:
    rates: dict[str, list[float]] = {name: [] for name in LISTERS}
    for _ in range(REPEATS):
        for name, list_keys in LISTERS.items():
            started = time.perf_counter()
            found = list_keys(environment)
            rates[name].append(found / (time.perf_counter() - started))
            assert found == KEYS[where], f"{name} found {found} keys"
    medians = {name: statistics.median(values) for name, values in rates.items()}
    peers = {name: medians[name] for name in ("boto3 paginator", "s5cmd")}
    row = {"bench": "listing", "unit": "keys/s", "ours": medians["ours"]}
    streams = {"one stream": medians["one stream"]}
    return [
        {**row, "metric": f"listing, {where}", "peers": peers, "ratio": medians["ours"] / max(peers.values())},
        {
            **row,
            "metric": f"{SHARDS} key ranges, {where}",
            "peers": streams,
            "ratio": medians["ours"] / medians["one stream"],
        },
    ]


def run() -> list[dict[str, Any]]:
    rows = []
    with seaweedfs() as server:
        server.bucket("production")
        production = Store.open("s3://production/", environment=server.environment)
        names = guids(KEYS["SeaweedFS"])
        production.put(f"{names[0]}/{FILE}", b"x")
        production.copy_many(production, ((f"{names[0]}/{FILE}", f"{name}/{FILE}") for name in names[1:]))
        rows += measure("SeaweedFS", server.environment)
    with synthetic_s3(0.03, KEYS["30 ms a page"]) as environment:
        rows += measure("30 ms a page", environment)
    return rows
