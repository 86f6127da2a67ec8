"""Deployment folders on this machine: the store's own, or copies of them where the store is a bucket. Whoever serves a copy holds it.

<folder>/<hash of the manifest>        a copy; the server verifies every file
<folder>/<hash of the manifest>.lock   locked, shared, by each process that serves it
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from docml_contract.names import MANIFEST
from resources.store import Store

HASH_DIGITS = 16


def local_folder(store: Store, key: str, copy: Path) -> Path:
    """A deployment folder on this machine: the store's own, or a copy of it. The server verifies every file."""
    if store.local_path is not None:
        return store.local_path / key
    if not (copy / MANIFEST).is_file():
        names = [stored.key.removeprefix(f"{key}/") for stored in store.list(key)]
        store.download(key, copy, [name for name in names if name != MANIFEST])
        store.download(key, copy, [MANIFEST])  # last: a copy that was cut off is made again
    return copy


class HeldCopies:
    """Copies that servers in the foreground read; nobody but their holders knows of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, store: Store, key: str, manifest_sha256: str) -> Path:
        """The deployment folder; a copy is held for as long as this process lives, through any exec."""
        copy = self._folder / manifest_sha256[:HASH_DIGITS]
        if store.local_path is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.set_inheritable(_lock(copy, fcntl.LOCK_SH), True)
        return local_folder(store, key, copy)

    def unheld(self) -> Iterator[Path]:
        """Copies that nobody serves."""
        for copy in sorted(path for path in self._folder.glob("*") if path.is_dir()):
            try:
                os.close(_lock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                continue
            yield copy

    def remove(self, copy: Path) -> None:
        """Remove a copy, unless somebody holds it by now."""
        try:
            held = _lock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(copy, ignore_errors=True)
        _lock_file(copy).unlink(missing_ok=True)
        os.close(held)


def _lock_file(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.lock")


def _lock(copy: Path, how: int) -> int:
    """The descriptor of the copy's lock, locked. BlockingIOError where another holds it and `how` does not wait."""
    path = _lock_file(copy)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, how)
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed with its copy while this one waited
