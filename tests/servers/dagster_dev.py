"""A real `dagster dev` for a test: its own home, a free port, stopped with everything that it started, also when the test is killed.

A process started in the background of a non-interactive shell ignores SIGINT and SIGTERM, and its children inherit that; the
handlers are put back before it is started, so that its runs can be terminated.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.guard import guarded

REPOSITORY = Path(__file__).parents[2]
READY_SECONDS = 240
LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""

CHECKS = """query($asset: AssetKeyInput!) { assetNodeOrError(assetKey: $asset) { ... on AssetNode { assetChecksOrError {
    ... on AssetChecks { checks { name partitionStatuses { ... on AssetCheckDefaultPartitionStatuses {
        succeededPartitions failedPartitions inProgressPartitions skippedPartitions executionFailedPartitions } } } } } } } }"""


@dataclass(frozen=True)
class DagsterDev:
    """A running `dagster dev`."""

    url: str
    home: Path
    log: Path
    process: "subprocess.Popen[bytes]"
    environment: Mapping[str, str]

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """The data of a GraphQL query; AssertionError with the server's words if it was refused."""
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = json.loads(answer.read())
        assert "errors" not in content, content["errors"]
        data: dict[str, Any] = content["data"]
        return data

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first: runId, status, tags."""
        text = "{ runsOrError { ... on Runs { results { runId status tags { key value } } } } }"
        found = self.query(text)["runsOrError"]["results"]
        return [{**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]

    def checks(self, asset: str) -> dict[str, dict[str, int]]:
        """Each check of an asset: how many partitions count as what, of which the UI's list of checks shows the worst."""
        found = self.query(CHECKS, asset={"path": [asset]})["assetNodeOrError"]["assetChecksOrError"]["checks"]
        return {
            check["name"]: {
                status.removesuffix("Partitions"): len(keys)
                for status, keys in check["partitionStatuses"].items()
                if keys
            }
            for check in found
        }

    def launch(self, experiment: str, run: int) -> str:
        """Materialize a run as the UI does; the id of its Dagster run."""
        selector = {"repositoryName": "__repository__", "repositoryLocationName": "docml", "jobName": "run_experiment"}
        params = {
            "selector": selector,
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": f"{experiment}|{run}"}]},
        }
        run_id: str = self.query(LAUNCH, params=params)["launchRun"]["run"]["runId"]
        return run_id

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
        """The condition's first true value; AssertionError after `seconds`, with the end of the server's log."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            time.sleep(0.3)
        raise AssertionError(f"{what}: not within {seconds:.0f} s\n{self.log.read_text()[-4000:]}")


@contextlib.contextmanager
def dagster_dev(home: Path, environment: Mapping[str, str]) -> Iterator[DagsterDev]:
    """Start `dagster dev` as `make ui` does, with its own DAGSTER_HOME; `environment` goes over this process's."""
    home.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    log = home / "dagster-dev.log"
    command = [sys.executable, "-m", "docml_assets.cli.home", "--port", str(port)]
    with guarded(home):
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, **environment, "DAGSTER_HOME": str(home)},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_prepare_child,
            )
        server = DagsterDev(f"http://127.0.0.1:{port}", home, log, process, environment)
        try:
            server.wait_for(lambda: _ready(server), "dagster dev answers", READY_SECONDS)
            yield server
        finally:
            _stop(process)


def _prepare_child() -> None:
    """Between fork and exec: signals as they are by default."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _ready(server: DagsterDev) -> bool:
    assert server.process.poll() is None, f"dagster dev ended\n{server.log.read_text()[-4000:]}"
    try:
        text = "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }"
        entries = server.query(text)["workspaceOrError"]["locationEntries"]
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM to the parent, which stops its servers; what is left of the session is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
