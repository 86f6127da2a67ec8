"""A recording Weights & Biases server: answers the real client, and keeps what it was told about each run."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEAM = "team"
KEY = "k" * 40  # of the form that the client accepts


@dataclass
class TrackedRun:
    """One run, as the server would show it. `history`: the logged records in order, without the client's own fields."""

    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    def curve(self, metric: str) -> list[float]:
        """A metric over the records that have it."""
        return [record[metric] for record in self.history if metric in record]


class RecordingServer(ThreadingHTTPServer):
    """`runs`: by id."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, TrackedRun] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that closes its connection is no news."""

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The answers that a run's life needs; anything else is unknown to this server, as to an old one."""
        if "upsertBucket" in query:
            return {"upsertBucket": {"bucket": self._upsert(variables), "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "id", "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            return {"viewer": {"id": "id", "entity": TEAM, "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {"model": {"bucket": None}, "serverInfo": {"cliVersionInfo": {}, "features": []}}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(variables["name"], TrackedRun())
        given = {"name": "displayName", "group": "groupName", "job_type": "jobType", "project": "project"}
        for attribute, variable in given.items():
            if variables.get(variable):
                setattr(run, attribute, variables[variable])
        config = json.loads(variables.get("config") or "{}")
        run.config.update({key: entry["value"] for key, entry in config.items() if key != "_wandb"})
        entity = {"id": "id", "name": variables.get("entity") or TEAM}
        project = {"id": "id", "name": run.project, "entity": entity}
        return {
            **{"id": "id", "name": variables["name"], "displayName": run.name, "project": project},
            **{"config": "{}", "historyLineCount": 0, "description": None, "sweepName": None},
        }

    def stream(self, run_id: str, files: dict[str, Any]) -> None:
        """What a run logs while it goes on."""
        run = self.runs.setdefault(run_id, TrackedRun())
        for line in files.get("wandb-history.jsonl", {}).get("content", []):
            record = json.loads(line)
            run.history.append({key: value for key, value in record.items() if not key.startswith("_")})
        for line in files.get("wandb-summary.json", {}).get("content", []):
            run.summary = json.loads(line)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RecordingServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": self.server.graphql(asked["query"], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body).get("files") or {})
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_GET = do_POST

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


@contextmanager
def recording_server() -> Iterator[RecordingServer]:
    """The server, while the block runs."""
    server = RecordingServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
