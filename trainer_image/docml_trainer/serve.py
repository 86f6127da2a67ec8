"""Answer over HTTP from a deployment folder: `python -m docml_trainer serve`, also a SageMaker inference container's command.

    $SAGEMAKER_BASE_DIR/model     the deployment folder (or $DOCML_MODEL_FOLDER)

SAGEMAKER_BIND_TO_PORT (8080), DOCML_SERVE_HOST (0.0.0.0): where it listens. DOCML_MANIFEST_SHA256: of the folder's MANIFEST.json; another
folder is not loaded. DOCML_ENCODE_TIMEOUT_SECONDS (at most 50): for one document. GET /openapi.json describes the rest.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn

from docml_trainer.container import EXIT_STOPPED, Folders
from docml_trainer.errors import FolderError
from docml_trainer.inference.model import DeploymentFolder
from docml_trainer.serving.answers import Answers
from docml_trainer.serving.app import Server, log

GRACE_SECONDS = 25  # for what is in flight: SageMaker waits 30 after SIGTERM


def main(folders: Folders) -> None:
    """Listen at once, load meanwhile, and finish what is in flight when told to stop."""
    folder = Path(os.environ.get("DOCML_MODEL_FOLDER") or folders.base / "model")
    errors: list[BaseException] = []

    def load(heard: Callable[[int], None]) -> Answers:
        deployment = DeploymentFolder.open(folder, os.environ.get("DOCML_MANIFEST_SHA256"))
        return Answers(deployment, heard, lambda text: log("warning", text))

    def failed(error: BaseException) -> None:
        errors.append(error)
        server.should_exit = True

    with _listen() as listener:
        application = Server(load, failed).application()
        # uvicorn hands signals on when it has finished.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_STOPPED))
        server = uvicorn.Server(
            uvicorn.Config(
                application,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
                lifespan="on",
                http="httptools",  # a request costs a fraction of what it does in pure Python
                loop="uvloop",
            )
        )
        host, port = listener.getsockname()[:2]
        log("info", "listening", host=host, port=port)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
    if errors:
        raise errors[0]


def _listen() -> socket.socket:
    host, port = os.environ.get("DOCML_SERVE_HOST") or "0.0.0.0", int(os.environ.get("SAGEMAKER_BIND_TO_PORT") or 8080)
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise FolderError(
            f"cannot listen on port {port} of {host} ({error.strerror}); expected a free port: give another with --port "
            "(SAGEMAKER_BIND_TO_PORT)"
        ) from error
