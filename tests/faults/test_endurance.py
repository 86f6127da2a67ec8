"""The same finished run again and again: nothing grows in the processes, and little in the home."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docml_assets.history import PAGE_BYTES, RUNS
from tests.faults.tiny import EXPERIMENT, Tiny
from tests.servers.dagster_dev import DagsterDev, dagster_dev

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

TIMES = int(os.environ.get("DOCML_REPEATS", "100"))
HOME_KB = 200
WARM = 5  # runs until all modules are loaded and all pools are full
MEMORY_KB = 30_000

Held = dict[str, int]  # memory (kB), descriptors, threads


def assert_flat(first: Held, last: Held) -> None:
    """Nothing grew between two measurements of a process."""
    assert last["descriptors"] <= first["descriptors"] + 2
    assert last["threads"] <= first["threads"] + 1
    assert last["memory"] <= first["memory"] + MEMORY_KB


def test_a_finished_run_executed_again_and_again_grows_nothing(undisturbed: Tiny, tmp_path: Path) -> None:
    tiny = undisturbed.copy(tmp_path / "tiny")
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.endurance", str(TIMES), "run", EXPERIMENT],
            cwd=tiny.root,
            env=tiny.environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            check=True,
        )
    shown = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(shown) == TIMES
    first, last = shown[min(WARM, TIMES - 1)], shown[-1]
    grown = (last["home"] - shown[0]["home"]) / (TIMES - 1)
    print(f"{TIMES} runs in one process: {grown:.0f} kB a run in the home, from {first} to {last}")
    assert_flat(first, last)
    assert grown <= HOME_KB, f"{grown:.0f} kB a run: {(tmp_path / 'log').read_text()[-500:]}"
    assert tiny.versions() == undisturbed.versions()
    assert not tiny.wait_until_quiet(), tiny.leftovers()


def test_a_daemon_that_executes_a_finished_run_again_and_again_grows_nothing(undisturbed: Tiny, tmp_path: Path) -> None:
    tiny = undisturbed.copy(tmp_path / "tiny")
    shown: list[dict[int, Held]] = []
    homes: list[int] = []
    with dagster_dev(tiny.home, tiny.environment) as dev:
        for number in range(TIMES):
            run = dev.launch(EXPERIMENT, 1)
            dev.wait_for(lambda run=run: status(dev, run) in ("SUCCESS", "FAILURE"), "the run ends", 300)  # type: ignore[misc]
            assert status(dev, run) == "SUCCESS"
            shown.append(dict(held_by(dev)))
            if number in (0, TIMES - 1):
                dev.wait_for(lambda: are_rewritten(tiny), "the databases of ended runs are rewritten", 300)
                homes.append(home_kb(tiny, dev.log))
    first, last = shown[min(WARM, TIMES - 1)], shown[-1]
    grown = (homes[-1] - homes[0]) / (TIMES - 1)
    print(f"{TIMES} runs under one daemon: {grown:.0f} kB a run in the home, from {first} to {last}")
    lasting = first.keys() & last.keys()
    assert len(lasting) >= 3, "the web server, the daemon and a code server"
    for pid in lasting:
        assert_flat(first[pid], last[pid])
    assert grown <= HOME_KB
    assert tiny.versions() == undisturbed.versions()


def status(dev: DagsterDev, run: str) -> str:
    """Where a Dagster run stands."""
    found: str = dev.query("query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run)[
        "runOrError"
    ]["status"]
    return found


def held_by(dev: DagsterDev) -> Iterator[tuple[int, Held]]:
    """What each process of a `dagster dev` holds."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) != dev.process.pid:
                continue
            fields = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
            descriptors = len(list((entry / "fd").iterdir()))
        except (OSError, ValueError):
            continue
        if "VmRSS" in fields:
            memory, threads = int(fields["VmRSS"].split()[0]), int(fields["Threads"])
            yield int(entry.name), {"memory": memory, "descriptors": descriptors, "threads": threads}


def are_rewritten(tiny: Tiny) -> bool:
    """Whether the database of each run has small pages: a sensor sees to it once a minute."""
    databases = [path for path in (tiny.home / RUNS).glob("?*.db") if path.name != "index.db"]  # `.db` is of no run
    return all(int.from_bytes(path.read_bytes()[16:18]) == PAGE_BYTES for path in databases)


def home_kb(tiny: Tiny, log: Path) -> int:
    """The size of its Dagster home, without what the server writes to its terminal, which a test has there."""
    total = 0
    for folder, _, names in os.walk(tiny.home):
        for name in names:
            try:
                path = Path(folder) / name
                total += path.stat().st_size if path != log else 0
            except FileNotFoundError:  # a journal of a database
                continue
    return total // 1000
