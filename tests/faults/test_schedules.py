"""Whole runs under real kills at random moments, drawn from a seed: nothing is done twice, lost, half-written or left over.

DOCML_SCHEDULES (of `make test-faults`): how many, or the first seed and the first no more, and where they are kept: `200`, `200:folder` or
`100-200:folder`. What a folder says to have passed is not run again, so that a long series can be taken up, and several processes can share it.
"""

import contextlib
import json
import os
import random
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults.tiny import EXPERIMENT, Command, Tiny, Warm, wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

SEEDS, _, FOLDER = os.environ.get("DOCML_SCHEDULES", "3").partition(":")
RUN = ("run", EXPERIMENT, "-v")
# What a run says on its way, in order; a signal comes a moment after one of them, whatever the machine's speed.
MARKS = (
    "Dagster home",
    "copying",
    "process_func: ",
    "files reconciled",
    "starting the job .*preparation",
    "encoding .*: 0 of",
    "preparation.*Uploading|encoded_splits: Uploading",
    "encoded and split",
    "starting the job .*training",
    "Training bow on",
    "Epoch 1/2",
    "Epoch 2/2",
    "TorchScript equals",
    "trained bow",
    "starting the job .*inference",
    "bow predicts",
    "unseen documents",
)
# A command goes on by itself after SIGHUP and SIGTERM to it: its job is stopped; after SIGKILL the job goes on.
OF_ORCHESTRATOR = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
MOST_COMMANDS = 12
# What Python's own tracker of semaphores prints in a job whose first tracker was killed.
TRACKER = re.compile(
    r"^.*  \| Traceback .*\n(.*  \| .*resource_tracker.*\n)(.*  \| .*\n)?.*  \| KeyError: '/mp-.*\n", re.MULTILINE
)


@dataclass
class Schedule:
    """What a seed draws, and what became of it."""

    seed: int
    kills: list[str] = field(default_factory=list)
    commands: int = 0
    floor: int = 0  # steps that the checkpoints held when the training was last hit
    encoded: int = 0  # documents of the finished parts when the preparation itself was killed

    def play(self, tiny: Tiny, warm: Warm) -> None:
        """Run and kill until the run is done."""
        draw = random.Random(self.seed)
        for function, seconds in (("process", 0.05), ("encode", 0.05), ("train", 0.15)):
            tiny.slow(function, draw.choice((0, seconds)))
        command = self._start(tiny, warm)
        for mark in sorted(draw.choices(range(len(MARKS)), k=draw.randint(1, 4))):
            reached = re.compile("|".join(MARKS[mark:]))
            wait_for(lambda: reached.search(command.text) or command.wait(0.001) is not None, 600)  # noqa: B023
            if command.wait(draw.choice((0.001, draw.uniform(0, 2)))) is None:
                self._kill(tiny, command, draw)
            command = self._taken_up(
                tiny, warm, command, 30 if self.kills and "orchestrator" in self.kills[-1] else 0.001
            )
            if command.code == 0:
                return
        while command.code != 0:
            assert command.wait(600) is not None, f"{self.kills}\n{command.text[-3000:]}"
            command = self._taken_up(tiny, warm, command, 0)

    def _start(self, tiny: Tiny, warm: Warm) -> Command:
        self.commands += 1
        assert self.commands < MOST_COMMANDS, self.kills
        return warm.start(tiny, *RUN, log=f"log-{self.commands}")

    def _taken_up(self, tiny: Tiny, warm: Warm, command: Command, seconds: float) -> Command:
        """The command, or the next one if it has ended within so many seconds and is not done."""
        if command.wait(seconds) in (None, 0):
            return command
        self._check_end(command)
        return self._start(tiny, warm)

    def _kill(self, tiny: Tiny, command: Command, draw: random.Random) -> None:
        """A signal to one of those that live, each kind as likely as the other."""
        running: dict[str, list[int]] = {"orchestrator": [command.pid]}
        for process in tiny.processes():
            if (
                "of Dagster" not in process.role
            ):  # the copier of the log ends with its watch, which is not ours to guard
                running.setdefault(process.role, []).append(process.pid)
        role = draw.choice(sorted(running))
        pid = draw.choice(sorted(running[role]))
        number = draw.choice(OF_ORCHESTRATOR) if role == "orchestrator" else signal.SIGKILL
        last = next((line for line in reversed(command.text.splitlines()) if line.strip()), "")
        if role in ("supervisor", "container", "trainer") and "trainer" in running:  # and not an inference's
            self.floor = max(self.floor, steps_kept(tiny))
        if role == "preparation":
            self.encoded = max(self.encoded, documents_kept(tiny))
        self.kills.append(f"{number.name} to {role} after {last!r}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _check_end(self, command: Command) -> None:
        """A command ends by the signal that was sent, or says in a sentence why it failed."""
        assert "Traceback" not in TRACKER.sub("", command.text), f"{self.kills}\n{command.text[-3000:]}"
        # Three attempts in one command, then it is given up and said; a signal ends it at once.
        ended = command.code
        assert ended in (1, 130, 129, 143, -9, -15, -1), f"{ended} {self.kills}\n{command.text[-3000:]}"


def steps_kept(tiny: Tiny) -> int:
    """Optimizer steps that the newest whole checkpoint in the store holds."""
    found = (tiny.place / "run_1/checkpoints").rglob("step-*/MANIFEST.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in found), default=0)


def documents_kept(tiny: Tiny) -> int:
    """Documents of the finished parts that the store holds of a preparation."""
    reports = (tiny.place / "run_1/checkpoints/_encoded_parts").rglob("report-*.json")
    spans = (path.stem.removeprefix("report-").split("-") for path in reports)
    return sum(int(end) - int(first) for first, end in spans)


def documents_taken(tiny: Tiny) -> int:
    """Most documents that an attempt of the preparation took up, as its log says."""
    text = "".join(path.read_text(errors="replace") for path in tiny.root.glob("log-*"))
    return max(map(int, re.findall(r"(\d+) of \d+ documents were encoded by an earlier attempt", text)), default=0)


def steps_repeated(tiny: Tiny) -> list[tuple[int, int]]:
    """(epoch, step in it) at which attempts of the training resumed, as their logs say."""
    text = "".join(path.read_text(errors="replace") for path in tiny.root.glob("log-*"))
    return [(int(epoch), int(step)) for epoch, step in re.findall(r"Resumed from \S+: epoch (\d+), step (\d+)", text)]


@pytest.mark.parametrize("seed", range(*map(int, SEEDS.split("-"))))
def test_a_run_that_is_killed_ends_as_an_undisturbed_one(
    seed: int, undisturbed: Tiny, warm: Warm, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kept = Path(FOLDER) / f"{seed}.json" if FOLDER else tmp_path / "kept.json"
    if kept.exists() and json.loads(kept.read_text())["passed"]:
        return
    tiny = undisturbed.copy(tmp_path / "tiny", without=[""])
    schedule = Schedule(seed)
    outcome: dict[str, Any] = {"passed": False}
    started = time.monotonic()
    try:
        schedule.play(tiny, warm)
        assert not (left := tiny.wait_until_quiet()), left
        assert tiny.versions() == undisturbed.versions()
        assert tiny.report() == undisturbed.report()
        assert not tiny.dagster_runs().keys() - {"SUCCESS", "FAILURE", "CANCELED"}
        # 4 steps an epoch: an attempt goes on where the newest checkpoint in the store stood, or later.
        resumed = [(epoch - 1) * 4 + step for epoch, step in steps_repeated(tiny)]
        assert not schedule.floor or not resumed or max(resumed) >= schedule.floor, (schedule.floor, resumed)
        assert documents_taken(tiny) >= schedule.encoded
        outcome["passed"] = True
    except BaseException as error:
        outcome["error"] = str(error)[-6000:]
        raise
    finally:
        tiny.end_everything()
        if FOLDER:
            outcome |= {"kills": schedule.kills, "commands": schedule.commands, "seconds": time.monotonic() - started}
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(outcome, indent=1))


def test_the_leftovers_of_a_living_run_are_seen(undisturbed: Tiny, warm: Warm, tmp_path: Path) -> None:
    tiny = undisturbed.copy(tmp_path / "tiny", without=[""])
    tiny.slow("train", 5)
    command = warm.start(tiny, *RUN)
    command.until("Training bow on")
    assert {"processes", "active", "leases"} <= tiny.leftovers().keys()
    command.send(signal.SIGINT)
    assert command.wait(60) == 130
    assert wait_for(lambda: not tiny.leftovers(), 30), tiny.leftovers()
