"""Many whole commands at once on a home that nobody has used: none crashes, and the home is a good one afterwards."""

import os
import shutil
from pathlib import Path

import pytest

from tests.faults.tiny import EXPERIMENT, Tiny, Warm

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

ROUNDS = int(os.environ.get("DOCML_ROUNDS", "50"))
AT_ONCE = 16


def test_sixteen_commands_at_once_in_fresh_homes(undisturbed: Tiny, warm: Warm, tmp_path: Path) -> None:
    tiny = undisturbed.copy(tmp_path / "tiny", home=False)
    for _ in range(ROUNDS):
        shutil.rmtree(tiny.home, ignore_errors=True)
        commands = [warm.start(tiny, "run", EXPERIMENT, log=f"log-{number}") for number in range(AT_ONCE)]
        for command in commands:
            assert command.wait(900) == 0, command.text
            assert "Traceback" not in command.text
        assert tiny.dagster_runs() == {"SUCCESS": AT_ONCE}
        warm.run(tiny, "run", EXPERIMENT)
    assert tiny.versions() == undisturbed.versions()
