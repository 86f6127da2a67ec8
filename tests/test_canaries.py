"""A whole local run whose five functions look for credentials wherever one looks, by a user without root's rights: they find none."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from docml_assets.experiment.scaffold import new_experiment
from resources.store import Store
from tests.docml_contract.test_seclude import AS_ANOTHER, ATTACK, CANARY

FUNCTIONS = ("process_func", "get_dataset_features", "encode_data", "load_model", "ordered_input_keys")
WATCH = """
import functools, sys
def _watched(function):
    looked = []
    @functools.wraps(function)
    def wrapper(*arguments):
        found = [] if looked else look(HOME, parent=False)  # which is the trainer itself
        if found:
            raise RuntimeError(f"{function.__name__} found {found}")
        if not looked:
            print(f"looked in {function.__name__}", file=sys.stderr, flush=True)
        looked.append(1)
        return function(*arguments)
    return wrapper
def process_func(artifact, directory):
    (directory / "looked.txt").write_text("process_func found nothing")
"""
EXPERIMENT = "EXP-1-canaries"


def watch_functions(folder: Path, home: Path) -> None:
    """Let all five functions of a new experiment look for credentials, in `home` too."""
    functions = folder / "user_defined_funcs.py"
    wrapped = "".join(f"{name} = _watched({name})\n" for name in FUNCTIONS)
    functions.write_text(f"{functions.read_text()}\nHOME = {str(home)!r}\n{ATTACK}{WATCH}{wrapped}")
    settings = folder / "settings.ini"
    settings.write_text(
        settings.read_text().replace(
            "RUN_NUM = 1", "RUN_NUM = 1\nMAX_ARTIFACTS = 60\nFILES_ON_RESEARCH = raw_text.json, looked.txt"
        )
    )


def write_credentials(home: Path) -> None:
    """Canaries where programs keep credentials."""
    for name in (".aws/credentials", ".netrc", ".pgpass", ".config/pip/pip.conf", ".psql_history"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"[default]\naws_access_key_id = {CANARY}\naws_secret_access_key = {CANARY}\n")


@pytest.fixture
def metadata() -> Iterator[list[str]]:
    """What a stand-in of EC2's metadata service is asked for. It listens where the orchestrator's environment says."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_GET = do_PUT

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked.append(f"http://127.0.0.1:{server.server_port}")
        yield asked
        server.shutdown()


@pytest.mark.slow
def test_no_function_of_an_experiment_finds_a_credential(tmp_path: Path, metadata: list[str]) -> None:
    home, folder = tmp_path / "home", tmp_path / "experiments" / EXPERIMENT
    write_credentials(home)
    new_experiment(folder, None)
    watch_functions(folder, home)
    settings = folder / "settings.ini"
    settings.write_text(settings.read_text().replace("epochs = 10", "epochs = 1"))
    command = [sys.executable, "-c", "from docml_assets.cli import main; main()", "run", EXPERIMENT]
    if os.getuid() == 0:
        command = [*AS_ANOTHER, *command]
    done = subprocess.run(
        command,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DOCML_"))},
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": str(home),
            "XDG_CACHE_HOME": str(Path.home() / ".cache"),
            "DAGSTER_HOME": str(tmp_path / "dagster"),
            "DOCML_EXPERIMENTS": str(tmp_path / "experiments"),
            "DOCML_STORE": str(tmp_path / "store"),
            "AWS_ACCESS_KEY_ID": CANARY,
            "AWS_SECRET_ACCESS_KEY": CANARY,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata[0],
            "HTTPS_PROXY": f"http://docml:{CANARY}@127.0.0.1:9",
            "WANDB_API_KEY": CANARY,
            "DOCML_WEBHOOK_URL": f"https://hooks.example/{CANARY}",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    store = Store.open(str(tmp_path / "store"), environment={})
    logs = "".join(
        store.get(found.key).decode() for found in store.list(f"{EXPERIMENT}/run_1/jobs") if found.key.endswith(".log")
    )
    assert {name for name in FUNCTIONS if f"looked in {name}" in logs} == set(FUNCTIONS) - {"process_func"}
    assert any(found.key.endswith("/looked.txt") for found in store.list(f"{EXPERIMENT}/data"))
    assert len(metadata) == 1, "nobody asked the metadata service"
    assert CANARY not in done.stdout + done.stderr + logs
