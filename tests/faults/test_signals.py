"""A signal to a process in the middle of a step: the same command again gives the run that nobody disturbed, and nothing is left over."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.matrix import played_by
from tests.faults.tiny import EXPERIMENT, Command, Tiny, Warm, wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

# By step: what of the finished run is taken away, what is slow then, and what the command says in the middle of it.
EVERYTHING = ("run_1/training", "run_1/inference", "run_1/deployment", "run_1/checkpoints", "run_1/jobs")
STEPS = {
    "reconciliation": (("",), "process", 0.3, "artifacts processed: 0 of"),
    "preparation": ((*EVERYTHING, "run_1/preparation", "data/prepared_data"), "encode", 0.3, "encoding .*: 0 of"),
    "training": (EVERYTHING, "train", 0.3, "Training bow on"),
    "tuning": (
        ("run_1/tuning", "run_1/inference", "run_1/deployment", "run_1/checkpoints", "run_1/jobs"),
        "train",
        0.3,
        "Trial 1 of 2",
    ),
    "inference": (("run_1/inference", "run_1/jobs"), None, 0, "starting the job .*inference"),
}
# By process: its roles on the machine. A search's supervisor is its tuner.
ROLES = {
    "supervisor": ("supervisor",),
    "tuner": ("supervisor",),
    "fork server": ("fork server",),
    "container": ("container", "preparation", "trainer", "inference"),
}
# By function of the experiment: the line before which it is made to end its process.
FUNCTIONS = {
    "get_dataset_features": "    import datasets\n\n    return datasets.Features",
    "encode_data": '    pause("encode")\n',
    "load_model": "    import torch\n\n    class Bow",
    "forward": "            if not torch.jit.is_tracing():",
    "ordered_input_keys": '    return ["ids"]',
}


@pytest.mark.parametrize(("process", "name", "step"), played_by("test_a_signal"))
def test_a_signal(
    process: str, name: str, step: str, warm: Warm, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    undisturbed: Tiny = request.getfixturevalue("undisturbed_search" if step == "tuning" else "undisturbed")
    without, function, seconds, mark = STEPS[step]
    tiny = undisturbed.copy(tmp_path / "tiny", without=without)
    if function:
        tiny.slow(function, seconds)
    try:
        command = warm.start(tiny, "run", EXPERIMENT, "-v")
        command.until(mark)
        send(tiny, command, process, name)
        if process == "orchestrator" and name != "SIGSTOP":
            assert command.wait(60) not in (None, 0), command.text
        for attempt in range(3):
            if command.wait(300) == 0:
                break
            assert "Traceback" not in command.text, command.text
            command = warm.start(tiny, "run", EXPERIMENT, "-v", log=f"again-{attempt}")
        assert command.code == 0, command.text
        assert not tiny.wait_until_quiet(), tiny.leftovers()
        assert tiny.versions() == undisturbed.versions()
        assert tiny.report() == undisturbed.report()
        assert not tiny.dagster_runs().keys() - {"SUCCESS", "FAILURE", "CANCELED"}
    finally:
        tiny.end_everything()


@pytest.mark.parametrize("statement", ["raise KeyboardInterrupt", "os._exit(0)"])
@pytest.mark.parametrize(
    ("function", "tuned"), [*((function, False) for function in FUNCTIONS), ("load_model", True)], ids=str
)
def test_a_function_that_ends_its_process(
    function: str, tuned: bool, statement: str, warm: Warm, tmp_path: Path
) -> None:
    """It would end so again: nothing is tried again, and one message says which function it was, and what to do."""
    tiny = Tiny.make(tmp_path / "tiny", tuned=tuned)
    path = tiny.root / "experiments" / EXPERIMENT / "user_defined_funcs.py"
    place, source = FUNCTIONS[function], path.read_text()
    assert place in source
    indent = " " * (len(place) - len(place.lstrip()))
    path.write_text(source.replace(place, f"{indent}{statement}\n{place}"))
    said = " ".join(warm.run(tiny, "run", EXPERIMENT, "-v", code=1).split())  # lines are folded
    assert "a function that cannot go on raises an Exception" in said
    assert function in said or statement == "os._exit(0)", said
    assert "Traceback" not in said
    assert "next attempt" not in said
    assert not tiny.wait_until_quiet(), tiny.leftovers()


def send(tiny: Tiny, command: Command, process: str, name: str) -> None:
    """The signal to the process; one that was stopped goes on after two seconds."""

    def found() -> list[int]:
        if process == "orchestrator":
            return [command.pid]
        return [each.pid for each in tiny.processes() if each.role in ROLES[process]]

    assert wait_for(found, 60), command.text
    number = signal.Signals[name.split()[0]]
    for pid in found():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    if name == "SIGINT twice":
        time.sleep(1)
        command.send(signal.SIGINT) if process == "orchestrator" else None
    if name == "SIGSTOP":
        time.sleep(2)
        for pid in found():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
