"""Many whole commands at once on a home that nobody has used: none crashes, and the home is a good one afterwards."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.tiny import EXPERIMENT, Tiny, Warm, wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

ROUNDS = int(os.environ.get("DOCML_ROUNDS", "50"))
AT_ONCE = 16
RACERS, RACES = 64, int(os.environ.get("DOCML_RACES", "20"))


def test_sixteen_commands_at_once_in_fresh_homes(undisturbed: Tiny, warm: Warm, tmp_path: Path) -> None:
    tiny = undisturbed.copy(tmp_path / "tiny", home=False)
    short = ("run", EXPERIMENT, "--steps", "reconciliation")  # finished as all others: what is raced for is the home
    for _ in range(ROUNDS):
        shutil.rmtree(tiny.home, ignore_errors=True)
        commands = [warm.start(tiny, *short, log=f"log-{number}") for number in range(AT_ONCE)]
        for command in commands:
            assert command.wait(900) == 0, command.text
            assert "Traceback" not in command.text
        assert tiny.dagster_runs() == {"SUCCESS": AT_ONCE}
        warm.run(tiny, *short)
    warm.run(tiny, "run", EXPERIMENT)
    assert tiny.versions() == undisturbed.versions()


def test_sixty_four_commands_that_take_the_next_number_at_once_get_one_each(
    undisturbed: Tiny, warm: Warm, tmp_path: Path
) -> None:
    """Each is killed as soon as it has said its number: what it would do then is not what is raced for."""
    tiny = undisturbed.copy(tmp_path / "tiny")
    said = re.compile(rf"{EXPERIMENT} run (\d+): ")
    for race in range(RACES):
        commands = [warm.start(tiny, "run", EXPERIMENT, "--next", log=f"log-{n}") for n in range(RACERS)]
        numbers = set()
        for command in commands:
            assert wait_for(lambda: said.search(command.text) or command.wait(0.001) is not None, 300)  # noqa: B023
            found = said.search(command.text)
            assert found, command.text
            command.send(signal.SIGKILL)
            numbers.add(int(found[1]))
        for command in commands:
            assert command.wait(60) is not None
        tiny.end_everything()
        first = 2 + race * RACERS
        assert numbers == set(range(first, first + RACERS))
