"""The S3 server itself is killed, ended or stopped, and comes back, in the middle of every step of a real run: all wait, and nothing is lost."""

import contextlib
import json
import re
import signal
import time
from collections.abc import Iterator

import pytest

from resources.store import Store
from tests.faults.matrix import played_by
from tests.faults.tiny import EXPERIMENT, Command, Tiny, Warm, wait_for
from tests.servers.s3 import RestartableS3, restartable_seaweedfs

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

DOWN_SECONDS = 8
# By step: what the command says in the middle of it. SeaweedFS writes an object's entry before the folders above it, and never lists one whose
# folders it did not get to: it is not killed while the first file of every folder is copied, since no S3 answers so.
MARKS = {
    "reconciliation": "process_func: 24 artifacts",
    "preparation": "encoding .*: 0 of",
    "training": "Training bow on",
    "tuning": "Trial 1 of 2",
    "inference": "starting the job .*inference",
}
PLACES = played_by("test_a_lost_server_is_waited_for")
# By these the server does not end: it reads its configuration again, or stands still until it is told to go on.
STAYING = ("SIGHUP", "SIGSTOP")
OUTAGE = re.compile("the store does not answer .* waiting for it up to 900 s")
# A run has a training or a search: in the run with the search the server is lost in every other step as well.
LOST_IN = {"training": ("training",), "search": ("reconciliation", "preparation", "tuning", "inference")}


@pytest.fixture(scope="module")
def server() -> Iterator[RestartableS3]:
    with restartable_seaweedfs() as running:
        yield running


def test_every_place_is_played() -> None:
    assert {step for _, _, step in PLACES} == {step for steps in LOST_IN.values() for step in steps}


@pytest.mark.parametrize("name", sorted({name for _, name, _ in PLACES}))
@pytest.mark.parametrize("kind", LOST_IN)
def test_a_lost_server_is_waited_for(
    kind: str, name: str, server: RestartableS3, warm: Warm, request: pytest.FixtureRequest
) -> None:
    undisturbed: Tiny = request.getfixturevalue("undisturbed_search" if kind == "search" else "undisturbed")
    url = server.s3.new_url()
    tiny = undisturbed.copy(request.getfixturevalue("tmp_path") / "tiny", without=[""])
    tiny.environment |= {**server.s3.environment, "DOCML_STORE": url}
    for function in ("process", "encode", "train"):
        tiny.slow(function, 0.2)
    try:
        command = warm.start(tiny, "run", EXPERIMENT, "-v")
        for step in LOST_IN[kind]:
            lose(server, command, name, step)
        assert command.wait(400) == 0, command.text
        assert "Traceback" not in command.text
    finally:
        with contextlib.suppress(RuntimeError):
            server.start()
        tiny.end_everything()
    store = Store.open(url, environment=server.s3.environment)
    found = {
        stored.key.removeprefix(f"{EXPERIMENT}/").rpartition("/")[0]: json.loads(store.get(stored.key))["data_version"]
        for stored in store.list(f"{EXPERIMENT}/run_1")
        if stored.key.endswith("/MANIFEST.json") and "checkpoints" not in stored.key
    }
    models = (f"run_1/{'tuning' if kind == 'search' else 'training'}/bow", "run_1/inference", "run_1/labels")
    assert {name: found[name] for name in models} == {name: undisturbed.versions()[name] for name in models}


def lose(server: RestartableS3, command: Command, name: str, step: str) -> None:
    """The signal to the server in the middle of the step; it is back a while later, and the command has waited."""
    reached = re.compile(MARKS[step])
    wait_for(lambda: reached.search(command.text) or command.wait(0.001) is not None, 400)
    assert command.code is None, command.text
    number, pid, told = signal.Signals[name.split()[0]], server.pid, len(command.text)
    server.send(number)
    if name == "SIGINT twice":
        server.send(number)
    time.sleep(DOWN_SECONDS)
    assert command.wait(0.01) is None, command.text
    server.start()
    assert (server.pid == pid) == (name in STAYING)
    if name not in STAYING:
        assert wait_for(lambda: OUTAGE.search(command.text, told), 60), command.text
