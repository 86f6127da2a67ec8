"""The orchestrator's image, and the services of deploy/compose.yaml started from it by hand: containers that share a network of their own."""

import json
import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.deploy.test_compose import COMPOSE, DEPLOY, env_example
from tests.image.engine import ROOT, Engine
from tests.servers.postgres import PostgresServer

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]
SOCKET = "/opt/postgres"
QUERY = "{ assetNodes { id } instance { daemonHealth { allDaemonStatuses { daemonType healthy } } } }"
ASK = """import json, sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:3000/graphql", json.dumps({"query": sys.argv[1]}).encode())
request.add_header("Content-Type", "application/json")
print(urllib.request.urlopen(request).read().decode())"""


@pytest.fixture(scope="module")
def image(engine: Engine, base: str) -> str:
    """The orchestrator's image, over the base of the jobs' one: any Python will do."""
    tag = "localhost/docml-test-orchestrator"
    engine.build(DEPLOY / "Dockerfile", tag, ROOT, BASE_IMAGE=base)
    return tag


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[list[str]]:
    """The engine's words that give a container an empty database, by the server's socket."""
    postgres_server.execute("DROP DATABASE IF EXISTS services WITH (FORCE)", "CREATE DATABASE services")
    parts = urlsplit(postgres_server.url)
    socket = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432"
    url = f"postgresql+psycopg2://{parts.username}@/services?host={SOCKET}"
    yield [f"--env=DAGSTER_POSTGRES_URL={url}", "--volume", f"{socket}:{SOCKET}/.s.PGSQL.5432"]
    postgres_server.execute("DROP DATABASE services WITH (FORCE)")


@contextmanager
def service(engine: Engine, image: str, name: str, *words: str) -> Iterator[str]:
    """One of the services, with compose's command, variables and volumes; its container's name."""
    definition: dict[str, Any] = COMPOSE["services"][name]
    container = f"docml-test-{name}-{uuid.uuid4().hex[:8]}"
    given = env_example() | {"DOCML_EXPERIMENTS": definition["environment"]["DOCML_EXPERIMENTS"]}
    variables = [f"--env={key}={value}" for key, value in given.items()]
    folders = [
        word
        for entry in definition["volumes"]
        for word in ("--volume", str((DEPLOY / entry.split(":")[0]).resolve()) + ":" + entry.split(":", 1)[1])
    ]
    engine(
        "run",
        "--detach",
        "--name",
        container,
        *engine.to_run,
        *variables,
        *folders,
        *words,
        image,
        *definition["command"],
    )
    try:
        yield container
    finally:
        print(engine("logs", "--tail", "20", container))
        engine("rm", "--force", container)


def wait_for(engine: Engine, container: str, *command: str, expected: str) -> str:
    """What a command says in a container, once it says that."""
    deadline = time.monotonic() + 300
    while True:
        asked = [*engine.command, "exec", container, *command]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode == 0 and re.search(expected, done.stdout):
            return done.stdout
        assert time.monotonic() < deadline, f"{container}: {done.stdout}{done.stderr}{engine('logs', container)}"
        time.sleep(1)


def test_the_services_of_compose_start(engine: Engine, image: str, database: list[str], tmp_path: Path) -> None:
    # Podman tells those that join a network nothing of the names that its owner was given.
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost code\n")
    alone = ["--network", "none", "--add-host", "code:127.0.0.1"]
    with service(engine, image, "code", *database, *alone) as code:
        wait_for(engine, code, *COMPOSE["services"]["code"]["healthcheck"]["test"][1:], expected="")
        joined = ["--network", f"container:{code}", "--volume", f"{hosts}:/etc/hosts:ro"]
        with (
            service(engine, image, "daemon", *database, *joined),
            service(engine, image, "webserver", *database, *joined) as webserver,
        ):
            sensors = r'"daemonType": ?"SENSOR", ?"healthy": ?true'
            answer = wait_for(engine, webserver, "python", "-c", ASK, QUERY, expected=sensors)
            assert len(json.loads(answer)["data"]["assetNodes"]) > 5
            assert engine("exec", webserver, "id", "-u").strip() == "1000"
            torch = [
                "exec",
                webserver,
                "python",
                "-c",
                "import docml_assets.definitions, sys; print('torch' in sys.modules)",
            ]
            assert engine(*torch).strip() == "False"
