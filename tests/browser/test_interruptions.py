"""Runs that people terminate and processes that are killed, under a real `dagster dev`, while a real training goes on."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from docml_assets.cli.home import dagster_instance
from docml_assets.experiment.scaffold import new_experiment
from docml_assets.partitions import PROCESS_TAG
from resources.jobs.engine.records import JobRecord
from tests.servers.dagster_dev import DagsterDev, dagster_dev

EXPERIMENT = "EXP-6-slow"
REEXECUTE = """mutation($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
ADD_KEY = """mutation($name: String!, $key: String!) { addDynamicPartition(partitionsDefName: $name, partitionKey: $key,
    repositorySelector: {repositoryName: "__repository__", repositoryLocationName: "docml"}) { __typename } }"""
EVENTS = """query($run: ID!) { logsForRun(runId: $run, limit: 5000) { ... on EventConnection { events { __typename
    ... on MessageEvent { message timestamp stepKey } } } } }"""


class Slow:
    """A `dagster dev` whose experiment, while the file `slow` exists, trains for minutes: it cannot end before it is stopped."""

    def __init__(self, root: Path, dev: DagsterDev) -> None:
        self.root = root
        self.dev = dev
        self.slow = root / "slow"

    def start(self, run: int) -> str:
        """Materialize a run as the UI does, and return once it trains."""
        settings = self.root / "experiments" / EXPERIMENT / "settings.ini"
        settings.write_text(re.sub(r"(?m)^RUN_NUM = .*$", f"RUN_NUM = {run}", settings.read_text()))
        self.slow.touch()
        self.dev.query(ADD_KEY, name="experiment_run", key=f"{EXPERIMENT}|{run}")
        run_id = self.launch(run)
        self.dev.wait_for(lambda: self.said(run_id, "epoch"), "an epoch is over", 240)
        return run_id

    def launch(self, run: int) -> str:
        return self.dev.launch(EXPERIMENT, run)

    def reexecute(self, run_id: str) -> str:
        params = {"parentRunId": run_id, "strategy": "FROM_FAILURE"}
        answer = self.dev.query(REEXECUTE, params=params)["launchRunReexecution"]
        new_id: str = answer["run"]["runId"]
        return new_id

    def run(self, run_id: str) -> dict[str, Any]:
        return next(run for run in self.dev.runs() if run["runId"] == run_id)

    def wait_for_status(self, run_id: str, *statuses: str, seconds: float = 300) -> str:
        def reached() -> str | None:
            status: str = self.run(run_id)["status"]
            return status if status in statuses else None

        status: str = self.dev.wait_for(reached, f"run {run_id} is {' or '.join(statuses)}", seconds)
        return status

    def events(self, run_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.dev.query(EVENTS, run=run_id)["logsForRun"]["events"]
        return found

    def said(self, run_id: str, text: str) -> list[str]:
        return [event["message"] for event in self.events(run_id) if text in (event.get("message") or "")]

    def trainers(self) -> list[int]:
        """Processes of this server's training jobs."""
        return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and self._trains(path)]

    def _trains(self, process: Path) -> bool:
        try:
            environment = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:
            return False
        return b"docml_trainer" in command and f"SAGEMAKER_BASE_DIR={self.root}".encode() in environment

    def records(self, run: int) -> list[JobRecord]:
        """The records of a run's training jobs, by attempt."""
        folder = self.root / "storage" / EXPERIMENT / f"run_{run}" / "jobs"
        found = [
            JobRecord.from_bytes(p.read_bytes(), str(p)) for p in folder.glob("*-training-*.json") if "." not in p.stem
        ]
        return sorted(found, key=lambda record: record.attempt)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slow]:
    root = tmp_path_factory.mktemp("slow")
    folder = root / "experiments" / EXPERIMENT
    new_experiment(folder, model=None)
    settings = folder / "settings.ini"
    settings.write_text(re.sub(r"(?m)^epochs = .*$", "epochs = 20", settings.read_text()))
    functions = folder / "user_defined_funcs.py"
    functions.write_text(functions.read_text() + SLOWLY.format(slow=str(root / "slow")))
    environment = {
        "DOCML_EXPERIMENTS": str(root / "experiments"),
        "DOCML_STORE": str(root / "storage"),
        "OMP_NUM_THREADS": "1",
    }
    with dagster_dev(root / "home", environment) as dev:
        yield Slow(root, dev)


SLOWLY = """

_load_model = load_model


def load_model(model_name, context):
    import itertools
    import os
    import time

    batches = itertools.count()

    def wait(*_):
        if os.path.exists({slow!r}):
            time.sleep(0.1 if next(batches) < 20 else 2.0)  # an epoch is soon over, twenty are not

    model = _load_model(model_name, context)
    model.register_forward_pre_hook(wait)
    return model
"""


def test_terminating_a_run_stops_its_training_and_the_next_one_resumes(server: Slow, page: Page) -> None:
    run_id = server.start(1)
    assert server.trainers()
    page.set_default_timeout(60_000)
    page.goto(f"{server.dev.url}/runs/{run_id}")
    page.get_by_role("button", name="Terminate").click()
    page.get_by_role("button", name=re.compile("Terminate 1 run")).click()
    begun = time.monotonic()
    server.dev.wait_for(lambda: not server.trainers(), "the training's processes are gone", 60)
    print(f"the training's processes were gone {time.monotonic() - begun:.1f} s after Terminate")
    server.wait_for_status(run_id, "CANCELED", seconds=60)
    assert [record.status for record in server.records(1)] == ["Stopped"]

    server.slow.unlink()
    again = server.launch(1)
    assert server.wait_for_status(again, "SUCCESS", "FAILURE") == "SUCCESS"
    assert server.said(again, "earlier checkpoints")
    assert [record.status for record in server.records(1)] == ["Stopped", "Completed"]
    assert not server.said(again, "starting the job EXP-6-slow-r1-preparation")


def test_a_killed_worker_leaves_a_failed_run_that_gains_nothing_and_the_next_attaches_to_its_job(
    server: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = server.start(2)
    monkeypatch.setenv("DAGSTER_HOME", str(server.dev.home))
    with dagster_instance(server.dev.home) as instance:  # a tag that the UI does not show
        run = instance.get_run_by_id(run_id)
    assert run is not None
    os.kill(int(run.tags[PROCESS_TAG].split()[1]), signal.SIGKILL)
    server.wait_for_status(run_id, "FAILURE", seconds=180)  # the code server sees it, or else orphaned_jobs_sensor
    assert server.trainers()
    again = server.reexecute(run_id)
    server.dev.wait_for(lambda: server.said(again, "attached to the job"), "the run attaches to the job", 120)
    server.slow.unlink()
    assert server.wait_for_status(again, "SUCCESS", "FAILURE") == "SUCCESS"
    assert [record.status for record in server.records(2)] == ["Completed"]
    events = server.events(run_id)
    died = next(float(event["timestamp"]) for event in events if event["__typename"] == "RunFailureEvent")
    made = [event for event in events if event["__typename"] == "MaterializationEvent"]
    assert {event["stepKey"] for event in made} == {
        "experiment_snapshot",
        "reconciled_data",
        "label_counts",
        "encoded_splits",
    }
    assert all(float(event["timestamp"]) < died for event in made)
