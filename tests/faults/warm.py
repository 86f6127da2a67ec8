"""`python -m tests.faults.warm SOCKET`: a process that has loaded docml, and forks real `docml` commands on request.

What is spared is the seconds of importing, nothing else: a command has a session, an environment, a folder and a log of its own, and ends as
one that a shell started. A request is a line of JSON (argv, cwd, env, log); the answer is the command's process number, then its exit code.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import random
import select
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

LOADED = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "optuna",
    "pandas",
    "polars",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "rich.live",
    "rich.table",
    "docml_assets.definitions",
    "docml_assets.execution",
    "docml_assets.runs.garbage",
    "docml_assets.runs.preflight",
    "docml_assets.reconcile.reconciliation",
    "docml_assets.report.build",
    "resources.endpoints.local",
    "resources.jobs.local.backend",
    "resources.store.folder",
    "upath",
    "dagster._core.execution.api",
    "dagster._core.execution.plan.active",
    "dagster._core.executor.in_process",
    "dagster._core.instance.factory",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._core.storage.sqlite_storage",
)


def main(address: str) -> None:
    """Answer requests until whoever started this process has gone."""
    cli = importlib.import_module("docml_assets.cli")
    for name in (*LOADED, *(f"{cli.__name__}.{module.name}" for module in pkgutil.iter_modules(cli.__path__))):
        importlib.import_module(name)
    gc.freeze()  # a collection in a command does not copy the pages of what is loaded here
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getppid()
    server.settimeout(1)
    print("ready", flush=True)
    while os.getppid() == parent:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        connection.settimeout(None)
        if os.fork() == 0:
            server.close()
            _answer(connection)
        connection.close()


def _answer(connection: socket.socket) -> None:
    """In a process between: start the command, tell its number, wait, tell its exit code. A killed test takes its command along."""
    request = json.loads(connection.makefile().readline())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _run(request)
    code = 1
    try:
        connection.sendall(f"{pid}\n".encode())
        if (
            connection in select.select([connection, os.pidfd_open(pid)], [], [])[0]
        ):  # closed: nothing more is ever sent
            os.killpg(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(f"{code}\n".encode())
    except OSError:  # nobody listens any more
        pass
    os._exit(0)


def _run(request: dict[str, Any]) -> None:
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM):  # which are ignored where the tests run under nohup
        signal.signal(number, signal.SIG_DFL)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    random.seed()
    sys.argv = ["docml", *request["argv"]]
    code = 1
    try:
        importlib.import_module("docml_assets.cli").main(request["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main(sys.argv[1])
