"""Keeps a folder in the store equal to a local one while a job runs: checkpoints survive the machine."""

import contextlib
import threading
from pathlib import Path

from docml_contract.sandbox import is_hollow
from resources.errors import ResourceError
from resources.store import Store

SECONDS = 1.5


class Mirror:
    """`restore` at the start, `start` while the job runs, `stop` at its end. Store errors while it runs are tried again."""

    def __init__(self, store: Store, folder: Path, prefix: str) -> None:
        self.store = store
        self.folder = folder
        self.prefix = prefix
        self._known: dict[str, tuple[int, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)

    def restore(self) -> int:
        """Fetch what an earlier attempt left; how many files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        count = self.store.download(self.prefix, self.folder)
        self._known = self._files()
        return count

    def start(self) -> None:
        """Begin to copy, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """The last sync, which raises what goes wrong."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.sync()

    def _work(self) -> None:
        while not self._over.wait(SECONDS):
            with contextlib.suppress(ResourceError):
                self.sync()

    def sync(self) -> None:
        """Upload what changed, then delete what has gone: the newest state is complete before an older one goes.

        Hidden files are drafts; a file that vanishes while it is read belonged to an older state.
        """
        files = self._files()
        for name, state in sorted(files.items(), key=lambda item: item[1]):
            if self._known.get(name) == state:
                continue
            with contextlib.suppress(FileNotFoundError):
                self.store.put_file(f"{self.prefix}/{name}", self.folder / name)
                self._known[name] = state
        gone = [name for name in self._known if name not in files]
        self.store.delete([f"{self.prefix}/{name}" for name in gone])
        for name in gone:
            del self._known[name]

    def _files(self) -> dict[str, tuple[int, int]]:
        """Path -> (modified in ns, size) of every file, but for sparse ones, which would be copied to their full length, and links, which
        may lead to what the job itself may not read."""
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder)
            if any(part.startswith(".") for part in name.parts):
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and not path.is_symlink() and not is_hollow(path):
                    status = path.stat()
                    found[name.as_posix()] = (status.st_mtime_ns, status.st_size)
        return found
