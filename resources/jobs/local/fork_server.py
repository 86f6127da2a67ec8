"""A process that has loaded the libraries of a search's trials, and whose forks the trials' containers are: they begin at once.

Its owner is the supervisor of the search, which starts it before the first trial, under the interpreter and with the variables that the
trials get. It ends when its owner ends (its socket says so, and the system kills it), and nobody else can ask it for anything: the socket
has no name. It keeps four promises, without any of which a container is a fresh interpreter:

- Forks are as good as fresh: at each of them one thread runs, no file is open but the socket, and no GPU was touched. It looks each time.
- Nothing of a job is ever in it: what a container is to do, its variables and keys, goes through it as a descriptor that the fork reads. No
  user code runs here, and no fork knows of the one before it.
- A fork is its owner's child (a subreaper) and not this process's: its end is waited for as that of a fresh one, and goes on without this.
- What a fork becomes is made by the code that makes a fresh one: `container_init` for its first process, `docml_contract.seclude` for its
  command. Then it gets what an interpreter finds at its start: folder, arguments, variables, signals, random numbers of its own, and what
  /proc tells of it, by which whatever a dead supervisor left is found.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

START_SECONDS = 300.0  # for loading everything on a machine that does much else
FORK_SECONDS = 30.0
SCRIPT = Path(__file__).with_name("fork_server_script.py")
# What the trials of a search load, whatever their models: the loop, what transformers' models are built of, the export, the curves.
LIBRARIES = (
    *("docml_trainer.train", "docml_trainer.training.launch", "transformers.modeling_utils"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg"),
)
# pyarrow's allocator would begin a thread as soon as it is loaded.
THREADLESS = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
TRAINER = ("-m", "docml_trainer")
SWITCH = "DOCML_FORK_SERVER"  # off: every container loads its libraries itself
READY = b"ready"  # what the script says once it has loaded everything
_CHILD_SUBREAPER = 36  # of prctl(2)


class ForkedProcess:
    """The first process of a container, as `subprocess.Popen` shows one."""

    def __init__(self, pid: int, stdin: IO[bytes]) -> None:
        self.pid, self.stdin = pid, stdin
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has taken it
                pid, status = self.pid, signal.SIGKILL
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. subprocess.TimeoutExpired if there is none in time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a container", timeout or 0)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The owner's side. `problem` says why it forks nothing any more; None while nothing is wrong."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        """command: what starts a container's command, the trainer or something else. folder: where it stands, which is empty."""
        python, *arguments = command
        modules = LIBRARIES if tuple(arguments) == TRAINER else ()
        self.problem: str | None = None
        self._is_ready = self._is_told = False
        self._deadline = time.monotonic() + START_SECONDS
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        folder.mkdir(parents=True, exist_ok=True)
        _become_reaper()
        with theirs:
            self._process = subprocess.Popen(
                [python, str(SCRIPT), str(os.getpid()), str(theirs.fileno()), *modules],
                env={**environment, **THREADLESS},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @staticmethod
    def is_wanted(environment: Mapping[str, str]) -> bool:
        """Whether the deployment has it on, and this system has what it takes."""
        return sys.platform == "linux" and environment.get(SWITCH, "on").strip().lower() not in (
            "off",
            "0",
            "false",
            "no",
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def is_starting(self) -> bool:
        """Whether it still loads, and forking would wait for that."""
        if not self._is_ready and self.problem is None:
            with contextlib.suppress(TimeoutError):
                self._is_ready = self._answer(0.0) == READY
            if not self._is_ready and time.monotonic() > self._deadline:
                self._give_up(f"it did not load its libraries within {START_SECONDS:.0f} s")
        return not self._is_ready and self.problem is None

    def fork(self, request: Mapping[str, Any], gateway: int | None) -> ForkedProcess | None:
        """A container's first process, which waits for a byte on its standard input; None where there is a problem.

        request: see `fork_server_script`. gateway: a descriptor for it.
        """
        if self.is_starting or self.problem is not None:
            return None
        content = os.memfd_create("container")
        theirs, ours = os.pipe()
        try:
            with os.fdopen(content, "wb", closefd=False) as stream:
                stream.write(json.dumps(request).encode())
            os.lseek(content, 0, os.SEEK_SET)
            socket.send_fds(self._control, [b"f"], [content, theirs, *([] if gateway is None else [gateway])])
            answer = self._answer(FORK_SECONDS)
        except (OSError, TimeoutError) as error:
            self._give_up(f"it does not answer ({type(error).__name__})")
            answer = b""
        finally:
            os.close(content)
            os.close(theirs)
        if self.problem is not None:
            os.close(ours)  # a fork that came to be after all ends
            return None
        process = ForkedProcess(int(answer), os.fdopen(ours, "wb", buffering=0))
        if process.poll() is not None:
            self._give_up("its forks are no children of their supervisor, or end at once")
            process.stdin.close()
            return None
        return process

    def tell(self) -> list[str]:
        """What people are to be told now: why it forks nothing any more, once."""
        if self.problem is None or self._is_told:
            return []
        self._is_told = True
        return [f"Every container loads its libraries itself: they cannot be loaded once for all ({self.problem})"]

    def close(self) -> None:
        """End it; what it has forked goes on."""
        self._control.close()
        self._process.kill()
        self._process.wait()

    def _answer(self, seconds: float) -> bytes:
        """Its next message. What is neither a number nor that it is ready is a problem. TimeoutError."""
        if not select.select([self._control], [], [], seconds)[0]:
            raise TimeoutError
        answer = self._control.recv(1 << 12)
        if answer != READY and not answer.isdigit():
            self._give_up(answer.decode(errors="replace") or "it died")
        return answer

    def _give_up(self, problem: str) -> None:
        self.problem = problem
        self.close()


def _become_reaper() -> None:
    """Orphans below this process become its children."""
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, *(ctypes.c_ulong(each) for each in (1, 0, 0, 0)))
