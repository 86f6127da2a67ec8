"""`python -m tests.resources.endpoints.act ROOT` reads lines `deploy|move|undeploy N`: a child does so with endpoints of this machine, and is
killed with SIGKILL at its n-th boundary: before and after each write to the store, each file of the server's folder, and each process that is
started or ended. Prints `killed` or `done` for each."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resources.endpoints import local
from resources.store import Store
from tests.contracts.endpoints_contract import deploy
from tests.resources.endpoints.test_local import LocalBench


def act(bench: LocalBench, action: str, left: int) -> None:
    def boundary() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def bounded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            boundary()
            found = function(*arguments, **options)
            boundary()
            return found

        return call

    for name in ("put", "delete"):
        setattr(Store, name, bounded(getattr(Store, name)))
    for module, name in (
        (local, "write_atomically"),
        (local, "kill_marked"),
        (subprocess, "run"),
        (local.shutil, "rmtree"),
    ):
        setattr(module, name, bounded(getattr(module, name)))
    if action == "undeploy":
        endpoints = bench.endpoints()
        endpoints.remove(endpoints.records.find("live"))
    else:
        deploy(bench, bench.spec(1 if action == "deploy" else 2, alias="live"))


for line in sys.stdin:
    action, number = line.split()
    child = os.fork()
    if child == 0:
        try:
            act(LocalBench(Path(sys.argv[1])), action, int(number))
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    print({0: "done", -signal.SIGKILL: "killed"}.get(code, f"exit code {code}"), flush=True)
