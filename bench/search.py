"""A search of 20 trials of a tiny model on this machine: the command, in seconds, against the same search without forks.

`python -m bench search`. The peer is this code with `DOCML_FORK_SERVER = off`: every trial an interpreter that loads torch, transformers,
datasets and accelerate itself. In pairs, one after the other; the ratio is the median of the pairs'. Memory: the proportional set size of
the server and ten forks that have loaded everything, against one interpreter's that has.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench._rows import Row
from resources.jobs.local.fork_server import LIBRARIES, SWITCH, TRAINER, ForkServer
from tests.faults.tiny import EXPERIMENT, SEARCH, Tiny

TRIALS, PAIRS, FORKS = 20, 3, 10
_LOADED = f"""
import importlib, sys, time
for module in {LIBRARIES}: importlib.import_module(module)
open(sys.argv[1], "w").close()
time.sleep(600)
"""


def run() -> list[Row]:
    """The rows of this benchmark."""
    pairs = _measure_searches()
    ratio = statistics.median(off / on for on, off in pairs)
    ours, peer = (statistics.median(each) for each in zip(*pairs, strict=True))
    one, forks = _measure_memory()
    return [
        _row(f"{TRIALS} trials of a tiny model", "s", ours, {"each trial loads its libraries": peer}, ratio),
        _row(f"memory of {FORKS} forks and their server", "MB", forks, {"one fresh interpreter": one}, None),
    ]


def _row(metric: str, unit: str, ours: float, peers: dict[str, float], ratio: float | None) -> Row:
    return {"bench": "search", "metric": metric, "unit": unit, "ours": ours, "peers": peers, "ratio": ratio}


def _measure_searches() -> list[tuple[float, float]]:
    """(seconds with forks, seconds without) of each pair."""
    with tempfile.TemporaryDirectory() as folder:
        first = Tiny.make(Path(folder) / "prepared", tuned=True)
        settings = first.root / "experiments" / EXPERIMENT / "settings.ini"
        rates = ", ".join(f"{number + 1}e-2" for number in range(TRIALS))
        text = settings.read_text().replace(SEARCH, f"\n[tunable]\nlearning_rate = {rates}\n")
        settings.write_text(text.replace("MAX_JOBS = 2", f"MAX_JOBS = {TRIALS}"))
        first.docml("run", EXPERIMENT, "--steps", "reconciliation,preparation")

        def seconds(name: str, switch: str) -> float:
            tiny = first.copy(Path(folder) / name)
            begun = time.perf_counter()
            tiny.docml("run", EXPERIMENT, "--run", "1", "--steps", "tuning", **{SWITCH: switch})
            return time.perf_counter() - begun

        return [(seconds(f"{pair}-on", "on"), seconds(f"{pair}-off", "off")) for pair in range(PAIRS)]


def _measure_memory() -> tuple[float, float]:
    """MB of one fresh interpreter that has loaded a trial's libraries, and of a server with its forks, each of which has them."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as ended:
        folder = Path(name)
        program, done = folder / "program.py", [folder / f"done-{number}" for number in range(FORKS + 1)]
        program.write_text(_LOADED)
        environment = {"PATH": os.environ["PATH"], "HOME": name}
        fresh = subprocess.Popen([sys.executable, str(program), str(done[-1])], env=environment)
        ended.callback(fresh.kill)
        _wait_for(done[-1:])
        one = _memory([fresh.pid])
        server = ForkServer((sys.executable, *TRAINER), environment, folder / "libraries")
        ended.callback(server.close)
        while server.is_starting:
            time.sleep(0.05)
        pids = [server.pid]
        for path in done[:-1]:
            fork = server.fork(_request(folder, program, path), None)
            assert fork is not None, server.problem
            ended.callback(fork.wait)
            ended.callback(fork.stdin.close)
            fork.stdin.write(b"g")
            pids.append(fork.pid)
        _wait_for(done[:-1])
        return one, _memory([*pids, *(int(child) for pid in pids[1:] for child in _children(pid))])


def _request(folder: Path, program: Path, done: Path) -> dict[str, Any]:
    return {
        "init": (str(done.with_suffix(".log")), 1 << 20, 1 << 10),
        "command": [str(program), str(done)],
        "environment": {"PATH": os.environ["PATH"], "HOME": str(folder)},
        "folder": str(folder),
        "network": "none",
        "hidden": [],
    }


def _wait_for(paths: list[Path]) -> None:
    deadline = time.monotonic() + 600
    while not all(path.exists() for path in paths):
        if time.monotonic() > deadline:
            raise TimeoutError("a process did not load its libraries")
        time.sleep(0.05)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _memory(pids: list[int]) -> float:
    """Proportional set sizes, MB."""
    lines = [line.split() for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(words[1]) for words in lines if words[0] == "Pss:") / 1000
