"""What commands cost by themselves: processor seconds of whole processes, on an experiment of 24 documents that has run, and on 100 runs of it.

`python -m bench commands`. A run that finds everything made reads and verifies all of it, and records it in Dagster. Its peer is what no
command over Dagster can go below: a new process that has Dagster execute and record as many empty assets, of the same partitions, in a
home of the same kind. Commands and peer in turn, five times; medians. The targets are absolute: 3 s, .1 s, 1 s and 1 s.
"""

import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench._rows import Row
from tests.faults.tiny import EXPERIMENT, Tiny

ROUNDS, RUNS = 5, 100
ASSETS = 6  # of a run
DOCML = (sys.executable, "-c", "from docml_assets.cli import main; main()")
EMPTY = f"""
import dagster as dg
keys = dg.DynamicPartitionsDefinition(name="experiment_run")
def asset(index):
    @dg.asset(name=f"asset_{{index}}", partitions_def=keys, deps=[f"asset_{{index - 1}}"] if index else [])
    def made(context):
        return dg.MaterializeResult(data_version=dg.DataVersion("1"))
    return made
with dg.DagsterInstance.get() as instance:
    instance.add_dynamic_partitions("experiment_run", ["EXP-1-empty|1"])
    assets = [asset(index) for index in range({ASSETS})]
    assert dg.materialize(assets, instance=instance, partition_key="EXP-1-empty|1").success
"""
NOTHING_NEW = "docml run, nothing to make (target 3)"
PEER = f"Dagster, {ASSETS} empty assets in a new process"


def run() -> list[Row]:
    """The rows of this benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        tiny = Tiny.make(Path(folder) / "tiny")
        tiny.docml("run", EXPERIMENT)
        many = tiny.copy(Path(folder) / "many")
        for number in range(2, RUNS + 1):
            _renumber(many.place / "run_1", number)
        commands = {
            NOTHING_NEW: (tiny, [*DOCML, "run", EXPERIMENT]),
            PEER: (tiny, [sys.executable, "-c", EMPTY]),
            "docml --help (target .1)": (tiny, [*DOCML, "--help"]),
            f"docml validate, {RUNS} runs (target 1)": (many, [*DOCML, "validate", EXPERIMENT]),
            f"docml runs, {RUNS} runs (target 1)": (many, [*DOCML, "runs", EXPERIMENT]),
        }
        found: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for what, (where, command) in commands.items():
                home = {"DAGSTER_HOME": str(Path(folder) / "empty")} if what == PEER else {}
                found.setdefault(what, []).append(_processor_seconds(command, {**where.environment, **home}))
    seconds = {what: statistics.median(values) for what, values in found.items()}
    return [_row(what, seconds) for what in commands if what != PEER]


def _processor_seconds(command: Sequence[str], environment: dict[str, str]) -> float:
    """User and system time of a process and of those that it waited for."""
    Path(environment["DAGSTER_HOME"]).mkdir(exist_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _renumber(first: Path, number: int) -> None:
    """A finished run's folder again under another number, in all that names it."""
    folder = first.with_name(f"run_{number}")
    shutil.copytree(first, folder, copy_function=os.link, ignore=shutil.ignore_patterns("jobs", "checkpoints"))
    for path in folder.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        path.unlink()  # a link to the first run's
        text = re.sub(r'("run": ?)1\b', rf"\g<1>{number}", text.replace("run_1/", f"run_{number}/"))
        path.write_text(text, encoding="utf-8")


def _row(what: str, seconds: dict[str, float]) -> Row:
    peers = {PEER: round(seconds[PEER], 2)} if what == NOTHING_NEW else {}
    return {
        "bench": "commands",
        "metric": what,
        "unit": "CPU s",
        "ours": round(seconds[what], 2),
        "peers": peers,
        "ratio": round(seconds[PEER] / seconds[what], 2) if peers else None,
    }
