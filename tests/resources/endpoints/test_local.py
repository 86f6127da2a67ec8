"""Endpoints on this machine keep the contract; their servers come back after a crash, and there is one a name after any kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resources.endpoints.endpoints import Endpoints
from resources.endpoints.interface import EndpointSpec
from resources.endpoints.local import LocalEndpoints
from resources.jobs.local.container import BASE_VARIABLE
from resources.processes import kill_marked
from resources.store import Store
from tests.contracts.endpoints_contract import EndpointsContract, answer, deploy, fill, plain_spec
from tests.resources.endpoints.test_copies import RemoteStore

COMMAND = [sys.executable, str(Path(__file__).with_name("fake_server.py"))]
ROOT = Path(__file__).parents[3]


class LocalBench:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store.open(str(root / "store"), environment={})
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(root), "DAGSTER_HOME": str(root / "home")}
        self.folder = root / "home/endpoints"
        fill(self.store)

    def endpoints(self) -> Endpoints:
        backend = LocalEndpoints(self.store, self.environment, COMMAND)
        backend.poll_seconds = 0.02
        return Endpoints(self.store, backend)

    def spec(self, run: int, **changes: Any) -> EndpointSpec:
        return plain_spec(self.store, run, **changes)

    def left(self) -> list[str]:
        folders = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted([*folders, *(f"process {pid}" for pid in self.processes())])

    def servers(self) -> int:
        return len(self.processes())

    def processes(self) -> list[int]:
        mark = f"{BASE_VARIABLE}={self.folder}/".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if stat[0] not in "ZX" and any(
                    v.startswith(mark) for v in (entry / "environ").read_bytes().split(b"\0")
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LocalBench]:
    bench = LocalBench(tmp_path)
    yield bench
    kill_marked(f"{BASE_VARIABLE}={bench.folder}")


class TestLocalEndpoints(EndpointsContract):
    """The contract."""


def test_a_server_that_died_is_started_again_when_somebody_looks(bench: LocalBench) -> None:
    spec = bench.spec(1)
    up = deploy(bench, spec)
    first = answer(bench, spec.name)["pid"]
    os.kill(first, signal.SIGKILL)
    while first in bench.processes():
        time.sleep(0.01)
    deadline = time.monotonic() + 60
    while not bench.endpoints().list_endpoints()[0].is_up:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert bench.endpoints().list_endpoints()[0].state.url == up.state.url  # type: ignore[union-attr]
    assert answer(bench, spec.name)["pid"] != first
    assert bench.servers() == 1


def test_a_folder_that_was_changed_does_not_come_back(bench: LocalBench) -> None:
    spec = bench.spec(1)
    deploy(bench, spec)
    bench.store.put(f"{spec.folder}/model.pt", b"other weights")
    os.kill(answer(bench, spec.name)["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while bench.endpoints().list_endpoints()[0].state.status != "Failed":  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "content differs" in bench.endpoints().list_endpoints()[0].state.reason  # type: ignore[union-attr]
    assert bench.servers() == 0


def test_copies_of_models_that_do_not_answer_any_more_are_removed(bench: LocalBench, tmp_path: Path) -> None:
    bench.store = RemoteStore.open(str(tmp_path / "store"), environment={})
    for run in (1, 2):
        deploy(bench, bench.spec(run, alias="live"))
    assert answer(bench, "live")["run"] == 2
    assert len(list((bench.folder / "live").glob("model-*"))) == 1


def test_an_endpoint_of_another_machine_is_not_said_to_be_gone(bench: LocalBench) -> None:
    up = deploy(bench, bench.spec(1))
    record = up.record.model_copy(update={"where": "another machine"})
    bench.store.put(record.spec.record_key, record.to_bytes())
    (found,) = bench.endpoints().list_endpoints()
    assert (found.is_here, found.is_up, found.usd_an_hour) == (False, False, None)


class Actor:
    """Acts in processes that are killed at their n-th boundary."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-m", "tests.resources.endpoints.act", str(root)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def lived(self, action: str, boundary: int) -> bool:
        """Whether it lived to see its end."""
        assert self.process.stdin
        assert self.process.stdout
        print(action, boundary, file=self.process.stdin, flush=True)
        said = self.process.stdout.readline().strip()
        assert said in ("done", "killed")
        return said == "done"


@pytest.fixture
def actor(bench: LocalBench) -> Iterator[Actor]:
    actor = Actor(bench.root)
    with actor.process:
        yield actor
        actor.process.kill()


@pytest.mark.parametrize("action", ["deploy", "move", "undeploy"])
def test_kill_9_at_every_boundary_and_then_again(bench: LocalBench, actor: Actor, action: str) -> None:
    boundary = 0
    while True:
        if action != "deploy":
            deploy(bench, bench.spec(1, alias="live"))
        ended = actor.lived(action, boundary)
        assert bench.servers() <= 1
        endpoints = bench.endpoints()
        if action == "undeploy":
            for record in list(endpoints.records):
                endpoints.remove(record)
        else:
            run = 1 if action == "deploy" else 2
            deploy(bench, bench.spec(run, alias="live"))
            assert answer(bench, "live")["run"] == run
            assert bench.servers() == 1
            server = json.loads((bench.folder / "live/server.json").read_text())
            assert server["spec"]["run"] == run
            (record,) = bench.endpoints().records
            assert (record.status, record.spec.run, record.previous) == ("up", run, None)
            endpoints.remove(record)
        assert bench.left() == []
        assert list(bench.endpoints().records) == []
        if ended:
            break
        boundary += 1
    assert boundary >= 5
