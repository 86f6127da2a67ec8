"""A failed run is posted once, with what people need to know, and the webhook's URL stays unseen."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from docml_assets.partitions import PROCESS_TAG, experiment_runs, register
from docml_assets.sensors.run_failures import (
    WebhookFailed,
    is_gone,
    orphaned_endpoints_sensor,
    orphaned_jobs_sensor,
    post,
    run_failure_sensor,
    runs_without_process,
    sweep,
    was_canceled,
)
from docml_contract.names import RunPlace
from resources.jobs.interface import Orphan
from resources.jobs.local.container import BASE_VARIABLE
from resources.processes import kill_marked, start_of, this_process
from tests.contracts.endpoints_contract import deploy
from tests.resources.endpoints.test_local import LocalBench


class Webhook:
    """A real HTTP server that answers the statuses it is told to and keeps what it received."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.received.append(json.loads(body))
                self.send_response(outer.statuses.pop(0) if outer.statuses else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook/s3cret"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    server = Webhook()
    yield server
    server.close()


@dg.asset(partitions_def=experiment_runs)
def broken() -> None:
    raise ValueError("labels.sqlite has no table document_labels\nexpected the table of LABELS_QUERY")


@dg.asset(partitions_def=experiment_runs)
def quoting() -> None:
    raise dg.Failure(
        "label '<!channel> <https://evil.example|sign in> @everyone [x](https://evil.example) a@b.example' is new"
    )


@dg.asset(partitions_def=experiment_runs)
def refused() -> None:
    raise dg.Failure("training of minilm: the loss is NaN\nstep 12\nstep 13")


def sensor_result(asset: dg.AssetsDefinition, environment: dict[str, str]) -> dict[str, Any]:
    """Run the asset to failure in process and evaluate the sensor on that run."""
    with dg.instance_for_test() as instance:
        key = register(instance, "EXP-7-x", 3)
        result = dg.materialize([asset], partition_key=key, instance=instance, raise_on_error=False)
        context = dg.build_run_status_sensor_context(
            sensor_name="run_failure_sensor",
            dagster_event=result.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            resources={"deployment": SimpleNamespace(environment=environment)},
        ).for_run_failure()
        run_failure_sensor(context)
        return {"run_id": result.run_id}


def test_an_error_in_a_step_is_posted_with_its_root_cause(webhook: Webhook) -> None:
    found = sensor_result(broken, {"DOCML_WEBHOOK_URL": webhook.url, "DOCML_UI_URL": "https://dagster.example/"})
    (message,) = webhook.received
    assert message["experiment"] == "EXP-7-x"
    assert message["run"] == 3
    assert message["step"] == "broken"
    assert message["reason"] == "labels.sqlite has no table document_labels"
    assert message["last_lines"] == ["expected the table of LABELS_QUERY"]
    assert message["link"] == f"https://dagster.example/runs/{found['run_id']}"
    assert message["text"].startswith("EXP-7-x run 3 failed in broken: labels.sqlite has no table")


def test_a_declared_failure_is_posted_in_its_own_words(webhook: Webhook) -> None:
    sensor_result(refused, {"DOCML_WEBHOOK_URL": webhook.url})
    (message,) = webhook.received
    assert message["reason"] == "training of minilm: the loss is NaN"
    assert message["last_lines"] == ["step 12", "step 13"]


def test_what_a_reason_quotes_calls_nobody_and_hides_no_link(webhook: Webhook) -> None:
    sensor_result(quoting, {"DOCML_WEBHOOK_URL": webhook.url})
    (message,) = webhook.received
    said = "label '&lt;!channel&gt; &lt;https://evil.example|sign in&gt; @ everyone [x] (https://evil.example) a@b.example' is new"
    assert message["text"].splitlines()[0].endswith(said)
    assert "<!channel>" in message["reason"], "programs get it as it was"


def test_without_a_webhook_nothing_is_posted(webhook: Webhook) -> None:
    sensor_result(broken, {})
    assert webhook.received == []


def test_a_passing_trouble_is_tried_again(webhook: Webhook) -> None:
    webhook.statuses = [503, 429, 200]
    waits: list[float] = []
    post(webhook.url, {"text": "x"}, sleep=waits.append)
    assert len(webhook.received) == 3
    assert waits == [2.0, 4.0]


def test_a_refusal_is_not_tried_again_and_hides_the_url(webhook: Webhook) -> None:
    webhook.statuses = [403]
    with pytest.raises(WebhookFailed, match="HTTP 403") as error:
        post(webhook.url, {"text": "x"}, sleep=lambda _: None)
    assert len(webhook.received) == 1
    assert "s3cret" not in str(error.value)


NOT_STARTED = dg.DagsterRunStatus.NOT_STARTED
STARTED, CANCELING = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING


class ListedJobs:
    """The jobs plane as the sensor sees it: orphans by the rule that the engine documents."""

    def __init__(self, *running: Orphan) -> None:
        self.running = list(running)
        self.stopped: list[str] = []
        self.damage: list[str] = []

    def orphans(self, canceled: Callable[[str], bool], damage: list[str]) -> list[Orphan]:
        damage += self.damage
        return [orphan for orphan in self.running if "lapsed" in orphan.reason or canceled(orphan.holder)]

    def stop(self, orphan: Orphan) -> None:
        self.stopped.append(orphan.name)


def orphan(holder: str, reason: str) -> Orphan:
    return Orphan("EXP-1-r1-training-a-1", "EXP-1", 1, "training", "a", 1, holder, reason)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


@dg.job
def nothing() -> None:
    pass


def add_run(
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus,
    tags: dict[str, str] | None = None,
    parent: str | None = None,
) -> str:
    made = instance.create_run_for_job(
        nothing, status=status, tags=tags or {}, parent_run_id=parent, root_run_id=parent
    )
    return made.run_id


def test_a_killed_process_is_told_from_a_living_one() -> None:
    program = "import resources.processes as p; print(p.this_process(), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdin is not None
    process = child.stdout.readline().strip()
    assert not is_gone(process)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert is_gone(process)
    child.stdout.close()
    child.stdin.close()


def test_a_reused_process_id_is_not_the_process() -> None:
    assert is_gone(f"{socket.gethostname()} {os.getpid()} 1")
    assert not is_gone(str(this_process()))


def test_another_hosts_process_is_not_called_gone() -> None:
    assert not is_gone("elsewhere 1 2")


def test_runs_without_a_process_end(instance: dg.DagsterInstance) -> None:
    gone = {PROCESS_TAG: f"{socket.gethostname()} {os.getpid()} 1"}
    dead, canceled = add_run(instance, STARTED, gone), add_run(instance, CANCELING, gone)
    alive = add_run(instance, STARTED, {PROCESS_TAG: str(this_process())})
    unknown = add_run(instance, STARTED)
    unborn, again = add_run(instance, NOT_STARTED, gone), add_run(instance, NOT_STARTED, gone, parent=dead)
    swept = sweep(instance, ListedJobs())
    assert set(swept.ended_runs) == {dead, canceled, unborn}
    statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses[dead] is statuses[unborn] is dg.DagsterRunStatus.FAILURE
    assert statuses[again] is NOT_STARTED, "it has the tags of the run that it executes again"
    assert statuses[canceled] in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    assert statuses[alive] is statuses[unknown] is STARTED


def test_a_lapsed_lease_stops_the_job_and_fails_its_run(instance: dg.DagsterInstance) -> None:
    run = add_run(instance, STARTED)
    jobs = ListedJobs(orphan(run, "its lease lapsed 90 s ago"))
    swept = sweep(instance, jobs)
    assert jobs.stopped == ["EXP-1-r1-training-a-1"]
    assert "its lease lapsed 90 s ago" in str(swept)
    found = instance.get_run_by_id(run)
    assert found is not None
    assert found.status is dg.DagsterRunStatus.FAILURE


def test_the_job_of_a_killed_run_goes_on(instance: dg.DagsterInstance) -> None:
    gone = {PROCESS_TAG: f"{socket.gethostname()} {os.getpid()} 1"}
    run = add_run(instance, STARTED, gone)
    jobs = ListedJobs(orphan(run, "held"))
    assert sweep(instance, jobs).ended_runs == (run,)
    assert jobs.stopped == []


def test_jobs_of_the_run_that_is_about_to_be_performed_are_spared(instance: dg.DagsterInstance) -> None:
    jobs = ListedJobs(orphan("of-another-instance", "its lease lapsed"))
    assert sweep(instance, jobs, spared=RunPlace("EXP-1", 1)).stopped_jobs == ()
    assert jobs.stopped == []
    assert sweep(instance, jobs, spared=RunPlace("EXP-1", 2)).stopped_jobs


def test_a_job_of_a_canceled_run_is_stopped_and_the_run_left_as_it_ended(instance: dg.DagsterInstance) -> None:
    run = add_run(instance, dg.DagsterRunStatus.CANCELED)
    jobs = ListedJobs(orphan(run, "its Dagster run was canceled"))
    sweep(instance, jobs)
    assert jobs.stopped
    found = instance.get_run_by_id(run)
    assert found is not None
    assert found.status is dg.DagsterRunStatus.CANCELED


def test_jobs_of_working_and_of_unknown_runs_go_on(instance: dg.DagsterInstance) -> None:
    working = add_run(instance, STARTED)
    jobs = ListedJobs(orphan(working, "held"), orphan("00000000-of-another-instance", "held"))
    assert sweep(instance, jobs).stopped_jobs == ()
    assert jobs.stopped == []
    assert not was_canceled(instance)("00000000-of-another-instance")


def test_the_sensor_says_what_it_did(instance: dg.DagsterInstance) -> None:
    run = add_run(instance, STARTED)
    jobs = ListedJobs(orphan(run, "its lease lapsed"))
    jobs.damage = ["_active_jobs/b.json: it is empty"]
    with dg.build_sensor_context(instance=instance, resources={"jobs": jobs}) as context:
        skipped = orphaned_jobs_sensor(context)
    assert isinstance(skipped, dg.SkipReason)
    assert "stopped: its lease lapsed" in (skipped.skip_message or "")
    assert "cannot be read (_active_jobs/b.json: it is empty): remove that file" in (skipped.skip_message or "")


def other_process() -> str:
    """The identity of a process that has ended."""
    code = "from resources.processes import start_of, this_process; print(this_process())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_this_process_lives_and_one_that_ended_is_gone() -> None:
    assert not is_gone(str(this_process()))
    assert is_gone(other_process())


def test_a_later_process_with_the_same_id_is_another_one() -> None:
    me = this_process()
    assert is_gone(str(me.model_copy(update={"start": "1"})))
    assert is_gone(f"{me.host} {me.pid} 1")  # as earlier versions wrote it


def test_of_another_machines_process_nothing_is_known() -> None:
    assert not is_gone("elsewhere 1 1")


def test_a_process_of_this_container_before_it_was_started_again_is_gone() -> None:
    first = int(start_of(1) or 0)
    elsewhere = this_process().model_copy(update={"namespace": "1"})
    assert is_gone(str(elsewhere.model_copy(update={"start": str(first - 1)}))) == (first > 0)
    assert not is_gone(str(elsewhere.model_copy(update={"start": str(first + 1)})))


def test_unfinished_runs_of_processes_that_are_gone_can_be_ended() -> None:
    gone = other_process()
    with dg.DagsterInstance.ephemeral() as instance:
        for process, status in (
            (gone, dg.DagsterRunStatus.STARTED),
            (gone, dg.DagsterRunStatus.SUCCESS),
            (str(this_process()), dg.DagsterRunStatus.STARTED),
        ):
            instance.create_run_for_job(nothing, status=status, tags={PROCESS_TAG: process})
        (dead,) = runs_without_process(instance)
        assert dead.tags[PROCESS_TAG] == gone
        instance.report_run_failed(dead, "gone")
        ended = instance.get_run_by_id(dead.run_id)
        assert ended is not None
        assert ended.status == dg.DagsterRunStatus.FAILURE
        assert runs_without_process(instance) == []


def test_endpoints_that_expired_are_taken_down_and_others_are_kept_up(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    bench = LocalBench(tmp_path)
    try:
        deploy(bench, bench.spec(1), expires_after=timedelta(microseconds=1))
        deploy(bench, bench.spec(2))
        with dg.build_sensor_context(instance=instance, resources={"endpoints": bench.endpoints()}) as context:
            skipped = orphaned_endpoints_sensor(context)
        assert isinstance(skipped, dg.SkipReason)
        assert skipped.skip_message == "1 endpoints taken down, 1 known"
        assert [found.name for found in bench.endpoints().list_endpoints()] == [bench.spec(2).name]
        assert bench.servers() == 1
    finally:
        kill_marked(f"{BASE_VARIABLE}={bench.folder}")
