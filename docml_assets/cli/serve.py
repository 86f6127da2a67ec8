"""docml serve: a model of a finished run answers over HTTP, in the foreground."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from docml_assets.cli.finished_run import Choice, RunChoice, find_run, open_run
from docml_assets.cli.home import prepare_dagster_home
from docml_assets.cli.terminal import say

if TYPE_CHECKING:
    from docml_assets.steps.work import Work

PASSED_ON = ("DOCML_STORE", "DOCML_PRODUCTION_FILES", "DOCML_S3_PATH_STYLE", "DOCML_WORKER_PYTHON")


@click.command(name="serve")
@click.argument("experiment")
@click.argument("run", type=RunChoice())
@click.option("--model", help="The model, where the run compares several.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65_535), help="The port to listen at.")
def command(experiment: str, run: Choice, model: str | None, host: str, port: int) -> None:
    """Answer over HTTP with a model of run RUN (a number, or `champion`) of EXPERIMENT, as a SageMaker inference container does. Ctrl-C ends it.

    POST /invocations takes documents, GET /ping tells whether the model is loaded, GET /openapi.json describes both.
    """
    from docml_assets.cli.display import make_display
    from docml_assets.deployment import Deployment
    from docml_assets.steps.deployment import choose_model, manifest_sha256, read_deployment

    home = prepare_dagster_home()
    with make_display(verbose=False) as display:
        deployment = Deployment.current()
        number, model = find_run(deployment, experiment, run, model)
        work = open_run(deployment, experiment, number, display, "serve")
        chosen = choose_model(work, model)
        read_deployment(work, chosen)
        sha256 = manifest_sha256(work, chosen)
        folder = _local_folder(work, chosen, home / "deployments" / sha256[:16])
    say(f"{work.describe()}, {chosen}: http://{host}:{port}/invocations (Ctrl-C ends it)")
    sys.stdout.flush()
    python = work.environment.get("DOCML_WORKER_PYTHON") or sys.executable
    environment = server_environment(work.environment, home) | {
        "DOCML_MODEL_FOLDER": str(folder),
        "DOCML_MANIFEST_SHA256": sha256,
        "DOCML_SERVE_HOST": host,
        "SAGEMAKER_BIND_TO_PORT": str(port),
    }
    os.execve(python, [python, "-m", "docml_trainer", "serve"], environment)  # signals go to the server itself


def _local_folder(work: "Work", model: str, copy: Path) -> Path:
    """The deployment folder on this machine: the store's own, or a copy of it. The server verifies every file."""
    key = work.place.deployment(model)
    if work.store.local_path is not None:
        return work.store.local_path / key
    work.store.download(key, copy)
    return copy


def server_environment(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """What a local job gets, and what following references into S3 takes."""
    from resources.jobs.local.container import ALLOWED, ALLOWED_PREFIXES

    prefixes = (*ALLOWED_PREFIXES, "AWS_")
    kept = {
        key: value for key, value in environment.items() if key in (*ALLOWED, *PASSED_ON) or key.startswith(prefixes)
    }
    return kept | {"PYTHONUNBUFFERED": "1", "SAGEMAKER_BASE_DIR": str(home / "serve")}
