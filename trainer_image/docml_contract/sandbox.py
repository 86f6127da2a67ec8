"""Worker processes that run process_func; user code is never imported here.

A worker gets an allow-listed environment without credentials, a home of its own, no network, and a process group, so that it goes with
everything it started. One that dies or hangs costs its artifact, and is replaced.
"""

import ctypes
import json
import os
import pwd
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from docml_contract.base import ProcessFuncBroken
from docml_contract.names import USER_FUNCTIONS

# Of the environment, only these reach user code: what a Python needs to start, and nothing that opens a door.
ALLOWED_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
# An artifact that takes longer than this hangs.
TIMEOUT_SECONDS = 600.0
# Loading user_defined_funcs.py may import large libraries.
STARTUP_SECONDS = 300.0
# Until what a worker started is gone, once it is killed.
KILL_SECONDS = 5.0
LOOK_SECONDS = 1.0  # between two looks whether a worker that says nothing is there still
_SCRIPT = Path(__file__).with_name("sandbox_script.py")
# A reply holds an error and its traceback, cut by the script; more is not one.
MAX_REPLY_BYTES = 1 << 20
# Of what a worker printed, the end that is shown.
LAST_BYTES = 2000

# Where programs keep credentials, below a home.
_CREDENTIALS = (
    *(".aws", ".azure", ".config/gcloud", ".config/gh", ".config/git", ".docker", ".gnupg", ".kube", ".ssh"),
    *(".git-credentials", ".my.cnf", ".netrc", ".npmrc", ".pgpass", ".pypirc"),
    *(".boto", ".config/rclone", ".databrickscfg", ".s3cfg", ".vault-token"),
    *(".cache/huggingface/token", ".cache/huggingface/stored_tokens", ".config/wandb"),
    *(".aliyun", ".cargo/credentials.toml", ".config/containers/auth.json", ".config/op", ".config/pip/pip.conf"),
    *(".config/pypoetry/auth.toml", ".config/snowflake", ".databricks", ".dockercfg", ".kaggle", ".m2/settings.xml"),
    *(".mylogin.cnf", ".oci", ".password-store", ".pg_service.conf", ".pip/pip.conf", ".snowsql", ".terraform.d"),
    *(".local/share/keyrings", ".config/chromium", ".config/google-chrome", ".mozilla"),
    *(".bash_history", ".mysql_history", ".psql_history", ".python_history", ".zsh_history"),
)
# … and below the folder that docml was started in, of which Dagster reads the first. PWD names it to those who work elsewhere.
_OF_DEPLOYMENT = (".env", "deploy/.env")
# … and which variables say that they lie elsewhere.
_CREDENTIAL_VARIABLES = (
    *(
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_CONFIG_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ),
    *("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "HF_TOKEN_PATH", "KUBECONFIG", "NETRC", "PGPASSFILE"),
)
_SECLUDE = Path(__file__).with_name("seclude.py")
_DUMPABLE = 4  # of prctl(2)


def seclude(command: Sequence[str], environment: Mapping[str, str], network: str) -> list[str]:
    """The command line that runs user code where it finds no credentials of this user's: see `seclude.py`.

    environment: the orchestrator's, which says where they lie. network: "none", "host" or "gateway:FD".
    """
    return [sys.executable, "-I", "-S", str(_SECLUDE), network, json.dumps(credential_files(environment)), *command]


def credential_files(environment: Mapping[str, str]) -> list[str]:
    """Files and folders of this user's that user code is not to see."""
    homes = {environment.get("HOME", "")}
    with suppress(KeyError):  # a user without an account, as containers have them
        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    hidden = [str(Path(home) / name) for home in sorted(homes - {""}) for name in _CREDENTIALS]
    named = (path for name in _CREDENTIAL_VARIABLES for path in environment.get(name, "").split(os.pathsep) if path)
    hidden += [str(Path(path).expanduser().absolute()) for path in named]  # as those who read them take them
    hidden += [str(Path(folder) / name) for folder in {environment.get("PWD", "."), "."} for name in _OF_DEPLOYMENT]
    if environment.get("HF_HOME"):
        hidden.append(str(Path(environment["HF_HOME"]) / "token"))
    return sorted({str(Path(path).absolute()) for path in hidden if os.access(path, os.F_OK)})


@cache
def find_exposure() -> str | None:
    """A sentence on what user code can do on this machine beyond what `seclude` lets it; None where it keeps its promise."""
    tried = subprocess.run(seclude(["true"], {}, "none"), capture_output=True, check=False)
    return tried.stderr.decode(errors="replace").strip() or None


def make_unreadable() -> None:
    """Let no process of this user, but root's, read this one's memory and environment (nor write its core): it holds credentials.

    Attaching a debugger, and reading `/proc/self/environ`, takes root from then on.
    """
    with suppress(OSError, AttributeError):  # systems other than Linux
        ctypes.CDLL(None).prctl(_DUMPABLE, *[ctypes.c_ulong(0)] * 4)


@dataclass(frozen=True)
class TaskOutcome:
    """error: None, or one line; traceback: the user's, or the worker's last words."""

    error: str | None
    traceback: str = ""


class BadReply(Exception):
    """Something else than a reply came through the worker's channel."""


class Worker:
    """One process at a time that runs process_func, or another function of two arguments.

    It is started at first use, and again after it died.
    """

    def __init__(
        self,
        home: Path,
        functions_source: str,
        environment: Mapping[str, str],
        timeout: float = TIMEOUT_SECONDS,
        module: str = USER_FUNCTIONS,
        function: str = "process_func",
    ) -> None:
        """`home`: a folder that does not exist yet; gone again after `close()`. `module` is what the source is called."""
        self.timeout, self._function = timeout, function
        self._home = home
        self._home.mkdir(mode=0o700)
        self._module = self._home / module
        self._module.write_text(functions_source, encoding="utf-8")
        self._python = environment.get("DOCML_WORKER_PYTHON") or sys.executable
        self._command = seclude([self._python, "-u", str(_SCRIPT), str(self._module)], environment, "none")
        self._environment = worker_environment(environment, self._home)
        self._process: subprocess.Popen[bytes] | None = None
        self._replies = self._output = -1
        self._pending = b""
        self._ended = False

    def run(self, artifact: Mapping[str, Any], directory: Path) -> TaskOutcome:
        """process_func(artifact, directory), the artifact as JSON values. Raises ProcessFuncBroken if the module cannot be loaded."""
        if self._process is None:
            self._start()
        if self._ended:
            return TaskOutcome("the step was stopped")
        assert self._process is not None
        assert self._process.stdin is not None
        token = secrets.token_hex(16)
        task = json.dumps({"artifact": artifact, "directory": str(directory), "token": token}).encode() + b"\n"
        try:
            self._process.stdin.write(task)
            self._process.stdin.flush()
            reply = self._reply(self.timeout)
        except BrokenPipeError:
            reply = None
        except TimeoutError:
            last_words = self._last_words()
            self.stop()
            return TaskOutcome(
                f"{self._function} did not end within {self.timeout:g} seconds and was stopped", last_words
            )
        except BadReply as error:
            self.stop()
            return TaskOutcome(
                f"{self._function} wrote into docml's own channel ({error}); leave alone file descriptors that you did not open"
            )
        if reply is None:
            return self._died()
        if reply.get("token") != token:
            self.stop()
            return TaskOutcome(f"{self._function} wrote into docml's own channel (a reply to no task); leave it alone")
        return TaskOutcome(reply.get("error"), str(reply.get("traceback", "")))

    def end(self) -> None:
        """Kill the process, whatever another thread waits for it for, and run nothing from now on."""
        self._ended = True
        if (process := self._process) is not None:
            _kill_descendants(process)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Kill the process and everything that it started, in sessions of their own too."""
        if self._process is None:
            return
        _kill_descendants(self._process)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _kill_marked(f"HOME={self._home}")
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        os.close(self._replies)
        os.close(self._output)
        self._process, self._pending = None, b""

    def close(self) -> None:
        """Stop, and remove the worker's home."""
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def _start(self) -> None:
        if shutil.which(self._python) is None:
            raise ProcessFuncBroken(
                f"DOCML_WORKER_PYTHON: {self._python!r} cannot be started (no such program); expected a Python interpreter"
            )
        make_unreadable()
        # Without a name: user code cannot put a link to what it may not read, or a pipe, in its place.
        self._output, name = tempfile.mkstemp(dir=self._home.parent)
        Path(name).unlink()
        self._replies, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*self._command, str(theirs), self._function],
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=self._output,
                cwd=self._home,
                env=self._environment,
                pass_fds=[theirs],
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._replies)
            os.close(self._output)
            raise ProcessFuncBroken(
                f"DOCML_WORKER_PYTHON: {self._python!r} cannot be started ({error.strerror}); expected a Python interpreter"
            ) from error
        finally:
            os.close(theirs)
        try:
            reply = self._reply(STARTUP_SECONDS)
        except (TimeoutError, BadReply):
            reply = None
        if self._ended:
            return
        if reply is None or not reply.get("ready"):
            broken, traceback = (
                (reply or {}).get("broken", "the worker died"),
                (reply or {}).get("traceback", self._last_words()),
            )
            self.stop()
            raise ProcessFuncBroken(
                f"{self._module.name} cannot be loaded by DOCML_WORKER_PYTHON ({self._python}): {broken}\n{traceback}\n"
                "Install what it imports there, or move the import into the function that needs it"
            )

    def _reply(self, seconds: float) -> dict[str, Any] | None:
        """The next reply; None if the worker has gone. Raises TimeoutError, and BadReply for what is none."""
        assert self._process is not None
        deadline = time.monotonic() + seconds
        replies = select.poll()  # select.select() takes no descriptor above 1,023
        replies.register(self._replies, select.POLLIN)
        while b"\n" not in self._pending:
            if not replies.poll(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())) * 1000):
                if self._process.poll() is not None and not replies.poll(0):
                    return None  # what it started may hold the pipe open
                if time.monotonic() >= deadline:
                    raise TimeoutError
                continue
            block = os.read(self._replies, 1 << 16)
            if not block:
                return None
            self._pending += block
            if len(self._pending) > MAX_REPLY_BYTES:
                raise BadReply(f"more than {MAX_REPLY_BYTES} bytes")
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            raise BadReply("no JSON") from None
        if not isinstance(reply, dict) or not isinstance(reply.get("error", ""), str):
            raise BadReply("no reply")
        return reply

    def _died(self) -> TaskOutcome:
        assert self._process is not None
        try:
            code = self._process.wait(5)
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            how = "its reply pipe closed"
        last_words = self._last_words()
        self.stop()
        return TaskOutcome(f"the worker process died ({how}) in {self._function}", last_words)

    def _last_words(self) -> str:
        beginning = max(0, os.fstat(self._output).st_size - LAST_BYTES)
        return os.pread(self._output, LAST_BYTES, beginning).decode(errors="replace")


def _kill_descendants(process: "subprocess.Popen[bytes]") -> None:
    """Kill what a process started, where the system shows it. The process is halted, so that nothing is added meanwhile."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + KILL_SECONDS
    while (found := _descendants(process.pid)) and time.monotonic() < deadline:
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _kill_marked(variable: str) -> None:
    """Kill what has a variable that a worker alone had: nobody's descendants, once the worker was dead."""
    mark = b"\0" + variable.encode() + b"\0"
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in b"\0" + path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


def _descendants(ancestor: int) -> list[int]:
    """The processes below another one that have not ended; none where the system does not show them."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, *_ = path.read_bytes().rpartition(b")")[2].split()
            if state not in (b"Z", b"X"):
                children.setdefault(int(parent), []).append(int(path.parent.name))
    found, level = list[int](), [ancestor]
    while level:
        level = [child for pid in level for child in children.get(pid, [])]
        found += level
    return found


def worker_environment(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """The allow-listed variables, and doors shut that a Python library would try by itself."""
    allowed = {name: environment[name] for name in ALLOWED_VARIABLES if name in environment}
    return {
        **allowed,
        "HOME": str(home),
        "TMPDIR": str(home),
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
