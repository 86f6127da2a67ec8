"""The same finished run again and again: nothing grows in the process, and little in the home."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.tiny import EXPERIMENT, Tiny

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

TIMES = int(os.environ.get("DOCML_REPEATS", "100"))
HOME_KB = 700  # Dagster writes what a materialization says four times, and a database of 120 kB a run
WARM = 5  # commands until all modules are loaded and all pools are full
MEMORY_KB = 30_000


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
    assert last["descriptors"] <= first["descriptors"] + 2
    assert last["threads"] <= first["threads"] + 1
    assert last["memory"] <= first["memory"] + MEMORY_KB
    grown = (last["home"] - shown[0]["home"]) / (TIMES - 1)
    assert grown <= HOME_KB, f"{grown:.0f} kB a run: {(tmp_path / 'log').read_text()[-500:]}"
    assert tiny.versions() == undisturbed.versions()
    assert not tiny.wait_until_quiet(), tiny.leftovers()
