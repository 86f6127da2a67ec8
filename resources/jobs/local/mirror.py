"""Keeps a folder in the store equal to a local one while a job runs: checkpoints survive the machine.

The job may write in the folder at any moment, and its user code may put links there: `docml_contract.untrusted_files`.
"""

import contextlib
import threading
from pathlib import Path

from docml_contract.untrusted_files import UntrustedFolder, is_hollow
from resources.errors import ResourceError
from resources.store import Store

SECONDS = 1.5


class Mirror:
    """`restore` at the start, `start` while the job runs, `stop` at its end. Store errors while it runs are tried again."""

    def __init__(self, store: Store, folder: Path, prefix: str) -> None:
        self.store = store
        self.folder = folder
        self.prefix = prefix
        folder.mkdir(parents=True, exist_ok=True)
        self._opened = UntrustedFolder(folder)
        self._known: dict[str, tuple[int, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)

    def restore(self) -> int:
        """Fetch what an earlier attempt left; how many files."""
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
        self._opened.close()

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
            try:
                stream = self._opened.open(name)
            except OSError:  # gone, or something else by now
                continue
            with stream:
                self.store.put_file(f"{self.prefix}/{name}", stream)
            self._known[name] = state
        gone = [name for name in self._known if name not in files]
        self.store.delete([f"{self.prefix}/{name}" for name in gone])
        for name in gone:
            del self._known[name]

    def _files(self) -> dict[str, tuple[int, int]]:
        """Path -> (modified in ns, size) of every plain file, but for sparse ones, which would be copied to their full length."""
        files = self._opened.plain_files()
        return {name: (status.st_mtime_ns, status.st_size) for name, status in files if not is_hollow(status)}
