"""Server-side copies a second: `Store.copy_many` against s5cmd, boto3 with 64 threads, the original's process pool, and a bare
obstore loop, on a real server (SeaweedFS) and on one that only waits 30 ms."""

import asyncio
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench._synthetic_s3 import FILE, guids, synthetic_s3
from resources.store import PARALLEL_COPIES, Store
from tests.servers.s3 import seaweedfs

REPEATS = 3
BYTES = b"x" * 5000
Copier = Callable[[Mapping[str, str], list[str], str], None]


def ours(environment: Mapping[str, str], keys: list[str], target: str) -> None:
    source = Store.open("s3://production", environment=environment)
    store = Store.open(f"s3://research/{target}", environment=environment)
    assert store.copy_many(source, ((key, key) for key in keys)) == []


def ours_within(environment: Mapping[str, str], keys: list[str], target: str) -> None:
    """Within one bucket, which is all that the bare loop can do."""
    source = Store.open("s3://research/in", environment=environment)
    store = Store.open(f"s3://research/{target}", environment=environment)
    assert store.copy_many(source, ((key, key) for key in keys)) == []


def bare_obstore(environment: Mapping[str, str], keys: list[str], target: str) -> None:
    """The same client library and concurrency, and nothing around it. It can only copy within a bucket."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        "research",
        endpoint=environment["AWS_ENDPOINT_URL_S3"],
        access_key_id=environment["AWS_ACCESS_KEY_ID"],
        secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
        client_options={"allow_http": True},
    )

    async def copy() -> None:
        pending = iter(keys)

        async def work() -> None:
            for key in pending:
                await obstore.copy_async(store, f"in/{key}", f"{target}/{key}")

        await asyncio.gather(*(work() for _ in range(PARALLEL_COPIES)))

    asyncio.run(copy())


def s5cmd(workers: int) -> Copier:
    def run(environment: Mapping[str, str], keys: list[str], target: str) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as script:
            script.writelines(f"cp s3://production/{key} s3://research/{target}/{key}\n" for key in keys)
            script.flush()
            program = Path(sys.executable).parent / "s5cmd"
            command = [str(program), "--endpoint-url", environment["AWS_ENDPOINT_URL_S3"], "--numworkers", str(workers)]
            subprocess.run([*command, "--log", "error", "run", script.name], env=dict(environment), check=True)

    return run


def _client(environment: Mapping[str, str], connections: int) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
        config=Config(max_pool_connections=connections, s3={"addressing_style": "path"}),
    )


def boto3_threads(environment: Mapping[str, str], keys: list[str], target: str) -> None:
    client = _client(environment, 64)

    def copy(key: str) -> None:
        client.copy_object(Bucket="research", Key=f"{target}/{key}", CopySource={"Bucket": "production", "Key": key})

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(copy, keys))


def _copy_file(task: tuple[dict[str, str], str, str]) -> None:
    environment, key, target = task
    client = _client(environment, 10)
    client.copy({"Bucket": "production", "Key": key}, "research", f"{target}/{key}")


def process_pool(environment: Mapping[str, str], keys: list[str], target: str) -> None:
    """The original's design: a process pool, a client and a managed copy for every file."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_copy_file, [(dict(environment), key, target) for key in keys], chunksize=8)


PEERS: dict[str, tuple[Copier, float]] = {  # and the share of the keys that a slow one gets
    "s5cmd (256 workers)": (s5cmd(256), 1.0),
    "s5cmd (64 workers)": (s5cmd(64), 1.0),
    "boto3, 64 threads": (boto3_threads, 1.0),
    "process pool, file by file": (process_pool, 0.05),
}


def measure(environment: Mapping[str, str], keys: list[str]) -> dict[str, float]:
    """Median copies a second of each, in turns."""
    mine: dict[str, tuple[Copier, float]] = {
        "ours": (ours, 1.0),
        "within": (ours_within, 1.0),
        "bare obstore loop": (bare_obstore, 1.0),
    }
    copiers = mine | PEERS
    # Back and forth, since a server slows down as it fills; those that are close to each other take more turns.
    turns = [[*copiers], [*reversed(copiers)], [*copiers], [*reversed(mine)], [*mine]]
    assert len([turn for turn in turns if len(turn) == len(copiers)]) == REPEATS
    rates: dict[str, list[float]] = {name: [] for name in copiers}
    for name in (name for turn in turns for name in turn):
        copy, share = copiers[name]
        some = keys[: int(len(keys) * share)]
        started = time.perf_counter()
        copy(environment, some, uuid.uuid4().hex[:8])
        rates[name].append(len(some) / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}


def rows_of(where: str, rates: dict[str, float]) -> list[dict[str, Any]]:
    mine = rates["ours"]
    peers = {name: rates[name] for name in PEERS}
    bare = {"bare obstore loop": rates["bare obstore loop"]}
    row = {"bench": "copies", "unit": "copies/s", "ours": mine}
    return [
        {**row, "metric": f"server-side copies, {where}", "peers": peers, "ratio": mine / max(peers.values())},
        {
            **row,
            "metric": f"within a bucket, {where}",
            "ours": rates["within"],
            "peers": bare,
            "ratio": rates["within"] / rates["bare obstore loop"],
        },
    ]


def run() -> list[dict[str, Any]]:
    rows = []
    with seaweedfs() as server:
        server.bucket("production")
        server.bucket("research")
        keys = [f"{guid}/{FILE}" for guid in guids(3000)]
        production = Store.open("s3://production", environment=server.environment)
        within = Store.open("s3://research/in", environment=server.environment)
        production.put("seed", BYTES)
        production.copy_many(production, (("seed", key) for key in keys))
        within.copy_many(production, ((key, key) for key in keys))
        rows += rows_of("SeaweedFS", measure(server.environment, keys))
    with synthetic_s3(0.03) as environment:
        keys = [f"{guid}/{FILE}" for guid in guids(6000)]
        rows += rows_of("30 ms", measure(environment, keys))
    return rows
