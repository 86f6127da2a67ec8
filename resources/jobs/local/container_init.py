"""The first process of a container: `python -I -S container_init.py LOG BYTES LINE COMMAND…`, standard library only. Or a fork of
`fork_server.py`, which then runs the command as a fork of its own.

It runs the command as its child and ends as the child ends, by exit code or by signal. Between the two it keeps three promises:

- The command starts only when standard input says so (one byte), so that the supervisor can note the container before it runs.
- Standard input that ends means that the supervisor is gone: everything ends at once. Whatever the command starts, in whatever session,
  ends with the command: orphans become children of this process (a subreaper, where the system knows them) and are killed.
- What the command prints goes into LOG, lines cut at LINE bytes, at most BYTES of it, then only lines for the orchestrator and the end.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections import deque
from pathlib import Path

CHUNK = 1 << 16
LAST_BYTES = 1 << 16  # of what is left out, the end is kept
PREFIXES = (b"DOCML ", b"docml: ")  # of `docml_contract.log_lines`
KILL_SECONDS = 10.0
_PDEATHSIG, _CHILD_SUBREAPER = 1, 36  # of prctl(2)


class BoundedLog:
    """A log file that user code cannot fill."""

    def __init__(self, path: str, most: int, line: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._left = most
        self._left_for_events = most // 4
        self._line = line
        self._begun = b""  # of the line that is not complete
        self._cut = 0  # bytes of that line that were left out
        self._left_out = 0
        self._last: deque[bytes] = deque()
        self._last_bytes = 0

    def write(self, data: bytes) -> None:
        """Add what was printed."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._extend(line)
            self._end_line()
        self._extend(rest)

    def close(self) -> None:
        """End the last line, and tell what was left out."""
        if self._begun:
            self._end_line()
        if self._left_out:
            note = f"docml: {self._left_out} bytes of output were left out here; this is the end of them"
            self._put(b"\n".join([note.encode(), *self._last, b""]))

    def _extend(self, part: bytes) -> None:
        room = self._line - len(self._begun)
        self._begun += part[:room]
        self._cut += max(0, len(part) - room)

    def _end_line(self) -> None:
        line = self._begun + (f" … ({self._cut} bytes more)".encode() if self._cut else b"") + b"\n"
        self._begun, self._cut = b"", 0
        if len(line) <= self._left:
            self._left -= len(line)
            self._put(line)
        elif line.startswith(PREFIXES) and len(line) <= self._left_for_events:
            self._left = 0
            self._left_for_events -= len(line)
            self._put(line)
        else:
            self._left = 0
            self._keep_last(line)

    def _keep_last(self, line: bytes) -> None:
        self._left_out += len(line)
        self._last.append(line[:-1])
        self._last_bytes += len(line)
        while self._last_bytes > LAST_BYTES:
            self._last_bytes -= len(self._last.popleft()) + 1

    def _put(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the job before its own work meets it
            os.write(self._file, data)


class Child:
    """The command, and everything that it has started."""

    def __init__(self, output: int) -> None:
        """Fork. `pid` is 0 in the child, whose output goes to `output`."""
        self.status: int | None = None
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                _prctl(_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != parent:
                    os._exit(1)
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
                    signal.signal(number, signal.SIG_DFL)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(output, 1)
                os.dup2(output, 2)
            except BaseException:
                os._exit(127)

    def reap(self) -> bool:
        """Take the ends of children; whether any is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.pid:
                self.status = status

    def terminate(self, *_: object) -> None:
        """SIGTERM to the command alone, as SageMaker does."""
        with contextlib.suppress(ProcessLookupError):
            if self.status is None:
                os.kill(self.pid, signal.SIGTERM)

    def kill_everything(self) -> None:
        """SIGKILL to all descendants until none is left."""
        deadline = time.monotonic() + KILL_SECONDS
        while self.reap() and time.monotonic() < deadline:
            for pid in _descendants() or [self.pid]:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        if not Path("/proc/self/stat").exists():
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)


def _descendants() -> list[int]:
    """Descendants of this process, where the system shows them."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc") if Path("/proc/self/stat").exists() else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    level = [os.getpid()]
    while level:
        level = [child for pid in level for child in children.get(pid, [])]
        found += level
    return found


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # systems other than Linux
        ctypes.CDLL(None).prctl(option, *(ctypes.c_ulong(each) for each in (value, 0, 0, 0)))


def run(log_path: str, most: int, line: int) -> None:
    """Be the first process of what follows: returns in the command's process alone, and ends this one as that ends."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _prctl(_CHILD_SUBREAPER, 1)
    if os.read(0, 1) == b"":
        os._exit(0)
    log = BoundedLog(log_path, most, line)
    printed, output = os.pipe()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    child = Child(output)
    if child.pid == 0:
        return
    os.close(output)
    signal.signal(signal.SIGTERM, child.terminate)
    sources = [0, printed, woken]
    while child.status is None:
        ready, _, _ = select.select(sources, [], [])
        if 0 in ready and os.read(0, CHUNK) == b"":
            child.kill_everything()
        if printed in ready:
            data = os.read(printed, CHUNK)
            log.write(data)
            if data == b"":
                sources.remove(printed)
        if woken in ready:
            os.read(woken, CHUNK)
            child.reap()
    child.kill_everything()
    while select.select([printed], [], [], 0)[0] and (data := os.read(printed, CHUNK)):
        log.write(data)
    log.close()
    code = os.waitstatus_to_exitcode(child.status or 0)
    if code < 0:
        end_by(-code)
    os._exit(code)


def end_by(number: int) -> None:
    """End this process by a signal, without a core of its own."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def main(log_path: str, most: str, line: str, *command: str) -> None:
    """Run the command; does not return."""
    run(log_path, int(most), int(line))
    try:
        os.execvpe(command[0], command, os.environ)
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
        os._exit(127)


if __name__ == "__main__":
    main(*sys.argv[1:])
