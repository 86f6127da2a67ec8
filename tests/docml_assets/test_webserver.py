"""What the UI's server gives out beside Dagster's pages: reports and pictures of finished runs, and nothing else."""

import hashlib
import inspect
from collections.abc import Iterator

import pytest
from dagster._cli import dev
from dagster_webserver import app
from dagster_webserver.webserver import DagsterWebserver
from starlette.applications import Starlette
from starlette.testclient import TestClient

from docml_assets.assets.metadata import address
from docml_assets.webserver import STORED_FILE, Webserver
from docml_contract.manifests import FileEntry, Manifest, utc_now
from docml_contract.names import MANIFEST
from tests.docml_assets.world import World

FOLDER = "EXP-1/run_1/inference"
FILES = {"report.html": b"<!doctype html>", "plots/a.png": b"png", "report.json": b"{}", "plots/../../x.png": b"out"}


@pytest.fixture
def manifest(world: World) -> Manifest:
    entries = [FileEntry(path=p, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for p, data in FILES.items()]
    found = Manifest(
        asset="inference_report",
        experiment="EXP-1",
        run=1,
        created_at=utc_now(),
        cache_key="key",
        data_version="0123456789abcdef",
        inputs={},
        code_version="1",
        files=tuple(entries),
    )
    for path, data in {**FILES, MANIFEST: found.to_bytes(), "stray.png": b"stray"}.items():
        if ".." not in path:
            world.store.put(f"{FOLDER}/{path}", data)
    return found


@pytest.fixture
def client(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("DOCML_STORE", str(world.store.local_path))
    with TestClient(Starlette(routes=[STORED_FILE])) as opened:
        yield opened


@pytest.mark.parametrize(("path", "kind"), [("report.html", "text/html; charset=utf-8"), ("plots/a.png", "image/png")])
def test_reports_and_pictures_are_shown_without_scripts(
    client: TestClient, manifest: Manifest, path: str, kind: str
) -> None:
    answer = client.get(address(FOLDER, manifest, path))
    assert (answer.status_code, answer.content) == (200, FILES[path])
    assert answer.headers["content-type"] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"sandbox", "default-src 'none'", "frame-ancestors 'none'"} <= set(policy)
    assert not any("script" in each for each in policy)


@pytest.mark.parametrize(
    "path",
    [
        f"{FOLDER}/report.json",
        f"{FOLDER}/MANIFEST.json",
        f"{FOLDER}/stray.png",
        f"{FOLDER}/plots/%2e%2e/%2e%2e/x.png",
        f"{FOLDER}/plots%2f%2e%2e%2f%2e%2e%2fx.png",
        "EXP-1/run_1/experiment/settings.ini",
        "EXP-1/run_1/inference/%2e%2e/inference/report.html",
        "EXP-1/run_1/training/%2e%2e/report.html",
        "EXP-1/run_2/inference/report.html",
        "%2e%2e/production/a.png",
        "%2fetc/passwd",
        "",
    ],
)
def test_nothing_else_is_given_out(client: TestClient, manifest: Manifest, path: str) -> None:
    answer = client.get(f"/stored/{path}?version={manifest.data_version}")
    assert answer.status_code == 404
    assert client.post(address(FOLDER, manifest, "report.html")).status_code == 405


@pytest.mark.parametrize("version", ["?version=fedcba", "?version=", ""])
def test_a_link_to_another_report_of_the_run_says_so(client: TestClient, manifest: Manifest, version: str) -> None:
    answer = client.get(f"/stored/{FOLDER}/report.html{version}")
    assert answer.status_code == 404
    assert "has version 0123456789ab, expected " in answer.text


def test_a_page_that_was_changed_is_not_shown(client: TestClient, manifest: Manifest, world: World) -> None:
    changed = b"<script>".ljust(len(FILES["report.html"]))
    world.store.put(f"{FOLDER}/report.html", changed)
    answer = client.get(address(FOLDER, manifest, "report.html"))
    assert answer.status_code == 500
    assert "content differs from its sha256" in answer.text
    assert "script" not in answer.text


def test_dagster_starts_and_makes_its_webserver_as_it_is_told() -> None:
    """What is taken from Dagster's own, whose names may change with its version."""
    assert issubclass(Webserver, DagsterWebserver)
    assert app.DagsterWebserver is DagsterWebserver
    assert '[sys.executable, "-m", "dagster_webserver"]' in inspect.getsource(dev.dev_command_impl)
