"""One object store, on a folder or on S3, behind one interface.

Keys are relative to the store's root, with '/' as separator. A `Store` is a URL and an environment: cheap to make, to pickle and to
open again in another process; its client comes into being at first use.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from resources.errors import SettingError, UnsafeFile
from resources.store.objects import (
    OUTAGE_SECONDS,
    PARALLEL_COPIES,
    PARALLEL_FILES,
    Gone,
    Names,
    Objects,
    StoreBackend,
    StoredObject,
    check_key,
)


class Store:
    """A folder or an S3 prefix. Errors: MissingKey, UnsafeKey, StoreError."""

    def __init__(self, url: str, environment: Mapping[str, str], patience: float = OUTAGE_SECONDS) -> None:
        self.url = canonical_url(url)
        self.patience = patience
        self._environment = dict(environment)
        self._backend: StoreBackend | None = None

    @classmethod
    def open(cls, url: str, *, environment: Mapping[str, str]) -> Self:
        """A folder's path, file:// or s3://bucket/prefix. Asks nothing of the store yet."""
        return cls(url, environment)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "patience": self.patience, "_environment": self._environment, "_backend": None}

    @property
    def backend(self) -> StoreBackend:
        """The client, made at first use."""
        if self._backend is None:
            self._backend = _open_backend(self.url, self._environment, self.patience)
        return self._backend

    @property
    def local_path(self) -> Path | None:
        """The folder of a folder store."""
        return Path(unquote(urlsplit(self.url).path)) if self.url.startswith("file:") else None

    def uri(self, key: str = "") -> str:
        """s3://bucket/prefix/key, or the absolute path."""
        root = str(self.local_path) if self.local_path else self.url
        return f"{root}/{key}" if key else root

    def below(self, prefix: str) -> "Store":
        """The store that begins at a folder of this one."""
        root = f"{self.local_path / prefix}" if self.local_path else f"{self.url}/{check_key(prefix)}"
        return Store(root, self._environment, self.patience)

    def with_patience(self, seconds: float) -> "Store":
        """The same store, waited for so long when it does not answer: for those who have something better to do."""
        return Store(self.url, self._environment, seconds)

    def get(self, key: str) -> bytes:
        """The content. Raises MissingKey."""
        return self.backend.get(check_key(key))

    def head(self, key: str) -> StoredObject | None:
        """The object's description, or None if there is none."""
        return self.backend.head(check_key(key))

    def exists(self, key: str) -> bool:
        """Whether there is an object of this key."""
        return self.head(key) is not None

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """All objects below a folder, sorted by key in byte order. Prefixes match whole path segments."""
        return self.backend.list(_check_prefix(prefix))

    def list_folders(self, prefix: str = "") -> Names:
        """Names of the immediate sub-folders, sorted."""
        return self.backend.list_folders(_check_prefix(prefix))

    def list_table(self, prefix: str = "", shards: int = 1, *, etags: bool = True) -> pa.Table:
        """As `list`, as an Arrow table: key, size, etag.

        shards: key ranges that S3 lists at once; they divide the keys by the first character after the prefix, so they
        gain where that varies, as in GUIDs. etags=False leaves the column null where it would cost reading files.
        Keys that `check_key` refuses are listed too, and symbolic links with the size LINK_SIZE, so that they can be counted.
        """
        return self.backend.list_table(_check_prefix(prefix), shards, etags)

    def put(self, key: str, data: bytes) -> StoredObject:
        """Write an object: readers see the old content or the new one."""
        return self.backend.put(check_key(key), data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless the key is taken: True for exactly one of several racing processes.

        If an answer is lost on the network, an object found with equal content counts as ours: let content name its writer.
        """
        return self.backend.put_if_absent(check_key(key), data)

    def put_file(self, key: str, file: Path | BinaryIO) -> StoredObject:
        """Write an object from a file of any size; from an opened one, all of it."""
        return self.backend.put_file(check_key(key), file)

    def get_file(self, key: str, path: Path) -> None:
        """Write an object's content to a file, whose folder is made; raises MissingKey."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.backend.get_file(check_key(key), path)

    def copy(self, source: str, target: str) -> StoredObject:
        """Copy within the store: server-side on S3, reflink or copy in a folder, never a hard link."""
        return self.copy_from(self, source, target)

    def copy_from(self, other: "Store", source: str, target: str) -> StoredObject:
        """Copy an object from another store: without passing through here if both are folders or lie on one S3 service."""
        return self.backend.copy_from(other.backend, check_key(source), check_key(target))

    def copy_many(
        self,
        other: "Store",
        pairs: Iterable[tuple[str, str]],
        *,
        parallel: int = PARALLEL_COPIES,
        copied: Callable[[], None] = lambda: None,
    ) -> Gone:
        """Copy many objects at once from another store (or this one): pairs of source and target key.

        copied: called after each object, from one thread at a time. Returns the copies whose source had gone; any other
        failure stops the rest and raises StoreError.
        """
        checked = ((check_key(source), check_key(target)) for source, target in pairs)
        return self.backend.copy_many(other.backend, checked, parallel, copied)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; missing ones are no error."""
        self.backend.delete([check_key(key) for key in keys])

    def download(self, prefix: str, folder: Path, files: Sequence[str] | None = None) -> int:
        """Write objects below `prefix` (or the listed ones, relative to it) into a folder. Returns how many."""
        root = _check_prefix(prefix)
        start = len(root) + 1 if root else 0
        names = list(files) if files is not None else [stored.key[start:] for stored in self.list(root)]
        keys = [f"{root}/{name}" if root else name for name in names]
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            for _ in pool.map(self.get_file, keys, [folder / check_key(name) for name in names]):
                pass
        return len(names)

    def upload(self, folder: Path, prefix: str) -> Objects:
        """Write all files of a folder below `prefix`. UnsafeFile for symbolic links: they lead out of the folder."""
        root = _check_prefix(prefix)
        paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
        for path in paths:
            if path.is_symlink():
                raise UnsafeFile(f"{path}: a symbolic link; put a copy of the file there instead")
        keys = ["/".join([*([root] if root else []), path.relative_to(folder).as_posix()]) for path in paths]
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            return [*pool.map(self.put_file, keys, paths)]


def canonical_url(url: str) -> str:
    """The one spelling of a store's URL: file:///absolute/path with links resolved, or s3://bucket/prefix."""
    if url.startswith("s3://"):
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not bucket:
            raise SettingError(f"{url!r}: expected s3://bucket or s3://bucket/prefix")
        return f"s3://{bucket}/{check_key(prefix)}" if prefix else f"s3://{bucket}"
    if "://" in url and not url.startswith("file://"):
        raise SettingError(f"{url.split('://')[0]!r} is not a kind of store: expected a folder, file:// or s3://")
    path = unquote(urlsplit(url).path) if url.startswith("file://") else url
    if not path:
        raise SettingError("a store's URL is empty: expected a folder, file:// or s3://")
    return Path(os.path.realpath(Path(path).expanduser())).as_uri()


def _check_prefix(prefix: str) -> str:
    stripped = prefix.strip("/")
    return check_key(stripped) if stripped else ""


def _open_backend(url: str, environment: Mapping[str, str], patience: float) -> StoreBackend:
    if url.startswith("file:"):
        from resources.store.folder import FolderBackend

        return FolderBackend(Path(unquote(urlsplit(url).path)))
    from resources.store.s3 import S3Backend  # obstore is loaded where S3 is used

    return S3Backend(url, environment, patience)
