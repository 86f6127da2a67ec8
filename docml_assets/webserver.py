"""`dagster dev` as `make ui` starts it: its webserver also gives out the reports and pictures of finished runs.

    python -m docml_assets.webserver dev -w workspace.yaml …      `dagster dev`
    python -m docml_assets.webserver webserver …                  the webserver that the former starts

Dagster shows a path as text to copy, and browsers follow no file:// link from a page that came over http. What a run's metadata links to
therefore has an address beside the UI's own pages. Only reports and pictures are given out, and only as their manifest has them; the browser
runs no script in them, and lets no other site embed them.
"""

import logging
import re
import runpy
import sys
import warnings
from typing import Any

import dagster_webserver.app
from dagster_webserver.webserver import DagsterWebserver
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from docml_assets.dagster_internals import have_dev_start
from docml_contract.names import EXPERIMENT_NAME, MODEL_NAME, STORED_FILES

SHOWN = re.compile(
    rf"(?P<folder>{EXPERIMENT_NAME.pattern}/run_[1-9][0-9]*/(?:labels|preparation|inference|(?:training|tuning)/{MODEL_NAME.pattern}))/"
    r"(?P<file>report\.html|(?:plots/)?[A-Za-z0-9][A-Za-z0-9._-]*\.png)"
)
HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Webserver(DagsterWebserver[Any, Any]):
    """Dagster's webserver, and the files of finished runs."""

    def build_routes(self) -> list[Any]:
        """Dagster's last route takes every address, so that ours comes first."""
        return [STORED_FILE, *super().build_routes()]


def give_out(request: Request) -> Response:
    """A report or a picture of a finished run, whose manifest has the version that the link was made for."""
    from docml_assets.deployment import Deployment
    from docml_assets.errors import EXPLAINED_ERRORS
    from resources.store.manifests import read_manifest, read_recorded

    asked = SHOWN.fullmatch(request.path_params["path"])
    if asked is None:
        return _refused(404, "Only reports (report.html) and pictures (.png) of runs are given out here.")
    folder, file = asked["folder"], asked["file"]
    try:
        store = Deployment.current().store
        manifest = read_manifest(store, folder)
        if manifest is None or not any(entry.path == file for entry in manifest.files):
            return _refused(404, f"{store.uri(folder)} has no {file}: another store (DOCML_STORE) may have it.")
        version = request.query_params.get("version", "")
        if not version or not manifest.data_version.startswith(version):
            return _refused(
                404,
                f"{store.uri(folder)} has version {manifest.data_version[:12]}, expected {version or 'a version in the link'}: another "
                "store (DOCML_STORE) may have that one; a new link is in the metadata of the newest materialization.",
            )
        content = read_recorded(store, folder, manifest.file(file))
    except EXPLAINED_ERRORS as error:
        return _refused(500, str(error))
    return Response(content, media_type="text/html" if file.endswith(".html") else "image/png", headers=HEADERS)


def _refused(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status_code=status, headers=HEADERS)


STORED_FILE = Route(f"{STORED_FILES}/{{path:path}}", give_out)


def start_dev() -> None:
    """Become `dagster dev`, with this module's webserver and without two warnings: that it has a successor, and that the settings beside
    workspace.yaml are not the home's.
    """
    warnings.filterwarnings("ignore", "Function `dev_command` is superseded")
    logging.getLogger("dagster").addFilter(lambda record: "in the current folder" not in str(record.msg))
    have_dev_start("docml_assets.webserver", "webserver")
    sys.argv[0] = "dagster"
    runpy.run_module("dagster", run_name="__main__")


def start_webserver() -> None:
    """Become `dagster-webserver`, with this module's routes."""
    dagster_webserver.app.DagsterWebserver = Webserver  # type: ignore[attr-defined]
    sys.argv = ["dagster-webserver", *sys.argv[2:]]
    runpy.run_module("dagster_webserver", run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "dev":
        start_dev()
    else:
        start_webserver()
