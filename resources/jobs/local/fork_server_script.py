"""Loads modules, then forks containers: `python fork_server_script.py OWNER SOCKET MODULE…`. What it promises is told in `fork_server.py`.

For the trainer's Python, which need not have the orchestrator's packages: the standard library and `docml_contract` only.
"""

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path, PosixPath
from typing import Any

from docml_contract import seclude

READY = b"ready"
_PDEATHSIG = 1  # of prctl(2)
_ARGUMENTS, _VARIABLES = slice(44, 46), slice(46, 48)  # where they lie in memory: of /proc/<pid>/stat after the state
_GATEWAY = 3  # the descriptor, in a container


class ForkedContainer:
    """What is asked for, in the fork that becomes it. `request`:

    init         (path of the log, its most bytes, those of a line)
    command      arguments of Python: `-m MODULE …`, or a file and its own
    environment  its variables
    folder       where it works
    network      "none", "host" or "gateway"
    hidden       files and folders that it does not see
    """

    def __init__(self, content: int, stdin: int, gateway: int | None = None) -> None:
        os.setsid()
        with os.fdopen(content, "rb", closefd=False) as stream:
            self.request: dict[str, Any] = json.load(stream)
        os.dup2(stdin, 0)
        if gateway is not None and gateway != _GATEWAY:
            os.dup2(gateway, _GATEWAY)
        self.kept = () if gateway is None else (_GATEWAY,)
        _close_all_but(*self.kept)

    def start(self, init: Any, homes: list[tuple[Any, str, str]]) -> None:
        """Returns in the command's process alone. init: the module `container_init`. homes: of `_find_homes`."""
        request = self.request
        environment, folder, command = request["environment"], request["folder"], request["command"]
        chosen = {
            name: os.environ[name] for name in ("LC_CTYPE",) if name in os.environ
        }  # by Python, where nobody names a locale
        os.environ.clear()
        os.environ.update(chosen | environment)
        os.chdir(folder)
        variables = [f"{name}={environment[name]}" for name in ("SAGEMAKER_BASE_DIR",) if name in environment]
        _show([sys.executable, init.__file__, *request["init"], *command], variables)
        init.run(*request["init"])
        _show([sys.executable, *command], variables)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _close_all_but(*self.kept)
        network = f"gateway:{_GATEWAY}" if request["network"] == "gateway" else request["network"]
        seclude.enter(network, request["hidden"])
        for module, name, below in homes:
            setattr(module, name, type(getattr(module, name))(environment.get("HOME", "") + below))
        if "numpy" in sys.modules:  # random reseeds itself, and torch begins with a number of its own
            sys.modules["numpy"].random.seed()

    def run(self) -> None:
        """The command, as `python COMMAND` runs it."""
        first, *rest = self.request["command"]
        is_module = first == "-m"
        name, *arguments = rest if is_module else (first, *rest)
        sys.path.insert(0, str(Path.cwd()) if is_module else str(Path(name).parent))
        sys.argv = [name, *arguments]
        if is_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")


def main(owner: int, channel: int, modules: Sequence[str]) -> None:
    """Load the modules and fork containers until the owner ends; in a container, run its command."""
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:
        return
    init = _load_init()
    sys.path.pop(0)  # this file's folder, which is no place for modules
    control = socket.socket(fileno=channel)
    files = _open_files()
    try:
        for module in modules:
            importlib.import_module(module)
    except Exception as error:
        control.send(f"{type(error).__name__}: {error}".encode()[:1000])
        return
    homes = _find_homes(os.environ.get("HOME", ""))
    gc.collect()
    gc.freeze()  # what is loaded stays shared memory: no fork's collector writes into it
    if _fork_orphan() == 0:  # the first ends threads that know of forks (OpenBLAS's): they begin anew only with work
        os._exit(0)
    control.send(READY)
    while True:
        asked, descriptors, *_ = socket.recv_fds(control, 1, 3)
        if not asked:
            return
        answer = _find_problem(files | {str(each) for each in descriptors})
        if not answer:
            number = _fork_orphan()
            if number == 0:
                break
            answer = str(number) if number > 0 else "it cannot fork (is there memory left?)"
        control.send(answer.encode())
        for each in descriptors:
            os.close(each)
    control.detach()
    try:
        container = ForkedContainer(*descriptors)
        container.start(init, homes)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(127)
    container.run()


def _fork_orphan() -> int:
    """0 in a fork, which is a child of the nearest reaper above this process; its number here, or -1 where there is none."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            number = os.fork()
        except OSError:
            os._exit(1)
        if number == 0:
            return 0
        os.write(theirs, number.to_bytes(8, "little"))
        os._exit(0)
    os.waitpid(child, 0)
    os.close(theirs)
    number = int.from_bytes(os.read(ours, 8), "little")
    os.close(ours)
    return number or -1


def _load_init() -> Any:
    """The module `container_init`."""
    spec = importlib.util.spec_from_file_location("container_init", Path(__file__).with_name("container_init.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _find_problem(files: set[str]) -> str:
    """Why a fork of this process would not be as good as fresh; empty if it would be."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        return f"{threads} threads run in it"
    if more := _open_files() - files:
        return f"libraries have opened files in it (descriptors {', '.join(sorted(more))})"
    torch = sys.modules.get("torch")
    return "a library has touched the GPU in it" if torch is not None and torch.cuda.is_initialized() else ""


def _open_files() -> set[str]:
    """Descriptors of this process."""
    found = set()
    for path in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # the one that lists them
            path.readlink()
            found.add(path.name)
    return found


def _close_all_but(*kept: int) -> None:
    """Close what is no standard stream."""
    for number in {int(name) for name in _open_files()} - {0, 1, 2, *kept}:
        os.close(number)


def _find_homes(home: str) -> list[tuple[Any, str, str]]:
    """Constants that libraries made of the home at their start (of tokens, of configurations): (module, name, what follows the home)."""
    found = []
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if type(value) in (str, PosixPath) and home and f"{value}/".startswith(f"{home}/"):
                found.append((module, name, str(value)[len(home) :]))
    return found


def _show(arguments: Sequence[str], variables: Sequence[str]) -> None:
    """Let /proc tell command line and variables of this process, as far as there is room: a fork has its parent's there."""
    fields = [int(field) for field in Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[1:]]
    for place, texts in ((_ARGUMENTS, arguments), (_VARIABLES, variables)):
        start, end = fields[place]
        size = end - start
        ctypes.memmove(start, "".join(f"{text}\0" for text in texts).encode()[: size - 1].ljust(size, b"\0"), size)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, *(ctypes.c_ulong(each) for each in (value, 0, 0, 0)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
