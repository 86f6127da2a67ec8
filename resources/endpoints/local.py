"""Endpoints on this machine: a server process each, which holds a lock on its folder for as long as it lives.

<folder>/<name>/server.json   what it answers with, and its port; written before the process is started
<folder>/<name>/lock          locked by the server
<folder>/<name>/turn          locked by whoever starts, looks at or ends the server
<folder>/<name>/ready         the server of server.json has answered; if it has died since, whoever looks starts it again
<folder>/<name>/log           its log
<folder>/<name>/base          its $SAGEMAKER_BASE_DIR, by which its processes are known
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from pydantic import Field

from docml_contract.base import Document
from docml_contract.manifests import write_atomically
from resources.endpoints.copies import local_folder
from resources.endpoints.interface import BusyEndpoint, EndpointFailed, EndpointSpec, EndpointState
from resources.jobs.local.container import ALLOWED, ALLOWED_PREFIXES, BASE_VARIABLE
from resources.jobs.local.state import is_locked
from resources.processes import Process, kill_marked, process_here, start_detached
from resources.store import Store

# What following references into S3 takes, beside what a local job gets.
PASSED_ON = ("DOCML_STORE", "DOCML_PRODUCTION_FILES", "DOCML_S3_PATH_STYLE", "DOCML_WORKER_PYTHON")
HOST = "127.0.0.1"
GRACE_SECONDS = 30.0  # after SIGTERM
PING_SECONDS = 5.0
INVOKE_SECONDS = 70.0


class ServerFile(Document):
    """server.json."""

    spec: EndpointSpec
    store_url: str
    port: int
    process: Process | None = Field(None, description="the server; none where its starter was killed")


def server_environment(environment: Mapping[str, str], base: Path) -> dict[str, str]:
    """What a server on this machine gets: what a local job gets, and what following references into S3 takes."""
    prefixes = (*ALLOWED_PREFIXES, "AWS_")
    kept = {
        key: value for key, value in environment.items() if key in (*ALLOWED, *PASSED_ON) or key.startswith(prefixes)
    }
    return kept | {"PYTHONUNBUFFERED": "1", BASE_VARIABLE: str(base)}


def local_endpoints(store: Store, environment: Mapping[str, str]) -> "LocalEndpoints":
    """Endpoints on this machine. The server runs under DOCML_WORKER_PYTHON (this interpreter)."""
    python = environment.get("DOCML_WORKER_PYTHON") or sys.executable
    return LocalEndpoints(store, environment, [python, "-m", "docml_trainer", "serve"])


class LocalEndpoints:
    """Implements `EndpointBackend`. `command` runs the server; tests give another."""

    name = "this machine"
    poll_seconds = 0.2
    patience_seconds = 900.0

    def __init__(self, store: Store, environment: Mapping[str, str], command: Sequence[str]) -> None:
        self.store = store
        self.environment = dict(environment)
        self.command = tuple(command)
        home = environment.get("DAGSTER_HOME")
        temporary = Path(tempfile.gettempdir()) / f"docml-endpoints-{os.getuid()}"
        self.folder = Path(home).resolve() / "endpoints" if home else temporary

    @cached_property
    def where(self) -> str:
        """This host and the folder of its endpoints."""
        return f"{socket.gethostname()} {self.folder}"

    def check(self, spec: EndpointSpec) -> None:
        """Nothing is refused here: the server says what it lacks."""

    def requests(self, spec: EndpointSpec) -> Mapping[str, object]:
        """The server's command line and the folder that it serves."""
        return {"server": {"command": list(self.command), "folder": self.store.uri(spec.folder), "host": HOST}}

    # -- the server

    def start(self, spec: EndpointSpec) -> None:
        """Start the server, or leave the one that runs with the same specification."""
        with self._turn(spec.name) as folder:
            present = self._read(folder)
            if present is not None and present.spec == spec and is_locked(folder):
                return
            self._end(folder, present)
            self._launch(folder, spec, present.port if present else None)

    def observe(self, name: str) -> EndpointState | None:
        """Its state; None if there is no endpoint of this name."""
        if not (self.folder / name).is_dir():
            return None
        with self._turn(name) as folder:
            present = self._read(folder)
            if present is None:
                return None
            url = f"http://{HOST}:{present.port}/invocations"
            configuration = present.spec.configuration
            if not is_locked(folder):
                if not (folder / "ready").exists():
                    return EndpointState("Failed", configuration, _end_of(folder / "log"), url)
                self._end(folder, present)
                present = self._launch(folder, present.spec, present.port)
                return EndpointState("Creating", configuration, "it had died, and is started again", url)
            if not _is_ready(present):
                return EndpointState("Creating", configuration, url=url)
            (folder / "ready").touch()
            return EndpointState("InService", configuration, url=url)

    def finish(self, spec: EndpointSpec) -> None:
        """Remove the copies of what it answered with before."""
        with self._turn(spec.name) as folder:
            present = self._read(folder)
            for copy in folder.glob("model-*"):
                if present is not None and copy.name != _copy_name(present.spec):
                    shutil.rmtree(copy, ignore_errors=True)

    def _launch(self, folder: Path, spec: EndpointSpec, port: int | None) -> ServerFile:
        """Start the server; the file is there before the process."""
        (folder / "ready").unlink(missing_ok=True)
        file = ServerFile(spec=spec, store_url=self.store.url, port=_free_port(port))
        model = local_folder(self.store, spec.folder, folder / _copy_name(spec))
        write_atomically(folder / "server.json", file.to_bytes())
        environment = server_environment(self.environment, folder / "base") | {
            "DOCML_MODEL_FOLDER": str(model),
            "DOCML_MANIFEST_SHA256": spec.manifest_sha256,
            "DOCML_SERVE_HOST": HOST,
            "SAGEMAKER_BIND_TO_PORT": str(file.port),
        }
        (folder / "base").mkdir(exist_ok=True)
        number = start_detached(self.command, folder, environment, folder / "log")
        if number is None:
            raise EndpointFailed(f"{spec.describe()}: its server did not start: {_end_of(folder / 'log')}")
        file = file.model_copy(update={"process": process_here(number)})
        write_atomically(folder / "server.json", file.to_bytes())
        return file

    def _end(self, folder: Path, present: ServerFile | None) -> None:
        """End the server and all its processes; what is in flight is finished first."""
        process = present.process if present else None
        if process is not None and process.is_visible and process.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_SECONDS
            while is_locked(folder) and time.monotonic() < deadline:
                time.sleep(0.02)
        deadline = time.monotonic() + GRACE_SECONDS
        while True:
            if process is not None and process.is_visible and process.is_alive:  # whose environment root alone may read
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            kill_marked(f"{BASE_VARIABLE}={folder / 'base'}")
            if not is_locked(folder):
                return
            if time.monotonic() > deadline:
                raise BusyEndpoint(f"the server of {folder.name} does not end")
            time.sleep(0.05)

    # -- answers

    def invoke(self, spec: EndpointSpec, body: bytes) -> bytes:
        """Ask the server. EndpointFailed if there is none."""
        present = self._read(self.folder / spec.name)
        if present is None:
            raise EndpointFailed(f"{spec.describe()} is not on this machine; deploy it again")
        url = f"http://{HOST}:{present.port}/invocations"
        try:
            request = Request(url, body, {"content-type": "application/json"})
            with urlopen(request, timeout=INVOKE_SECONDS) as response:
                return bytes(response.read())
        except HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            if error.code == 503:
                raise BusyEndpoint(said) from None
            raise EndpointFailed(f"{spec.describe()} answers {error.code}: {said}") from None
        except (URLError, OSError) as error:
            self.observe(spec.name)  # starts it again if it has died
            raise BusyEndpoint(str(error)) from None

    # -- the end

    def remove(self, name: str) -> None:
        """End the server and remove its folder; an absent one is no error."""
        if not (self.folder / name).is_dir():
            return
        with self._turn(name) as folder:
            self._end(folder, self._read(folder))
            (folder / "server.json").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)

    def names(self) -> list[str]:
        """Of all endpoints on this machine, sorted."""
        return sorted(path.parent.name for path in self.folder.glob("*/server.json"))

    def owns(self, name: str) -> bool:
        """Whether the endpoint serves this store."""
        present = self._read(self.folder / name)
        return present is not None and present.store_url == self.store.url

    def usd_an_hour(self, spec: EndpointSpec) -> float | None:
        """Nothing: it runs on this machine."""
        return 0.0

    # -- helpers

    @contextlib.contextmanager
    def _turn(self, name: str) -> Iterator[Path]:
        """One process at a time works on an endpoint; the folder."""
        folder = self.folder / name
        while True:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (folder / "turn").open("a") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                if _is_at(turn.fileno(), folder / "turn"):
                    yield folder
                    return
            # it was removed while this one waited

    @staticmethod
    def _read(folder: Path) -> ServerFile | None:
        path = folder / "server.json"
        try:
            return ServerFile.from_bytes(path.read_bytes(), str(path))
        except (FileNotFoundError, NotADirectoryError):
            return None


def _copy_name(spec: EndpointSpec) -> str:
    """The folder of its model, where the store is not on this machine."""
    return f"model-{spec.configuration}"


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at the path."""
    with contextlib.suppress(FileNotFoundError):
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    return False


def _is_ready(present: ServerFile) -> bool:
    """Whether the server answers, and is the one that was meant."""
    try:
        with urlopen(f"http://{HOST}:{present.port}/ping", timeout=PING_SECONDS) as response:
            said: dict[str, Any] = json.loads(response.read())
    except (OSError, ValueError):
        return False
    spec = present.spec
    return (said.get("experiment"), said.get("run"), said.get("model")) == (spec.experiment, spec.run, spec.model)


def _free_port(wanted: int | None) -> int:
    """The wanted port if it is free, else another."""
    if wanted is not None:
        with contextlib.suppress(OSError), socket.create_server((HOST, wanted)):
            return wanted
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def _end_of(log: Path) -> str:
    """The last thing that a server said."""
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return "\n".join(lines[-5:])[-800:]
    return ""
