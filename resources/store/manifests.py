"""Finished folders: the ones with a MANIFEST.json, which is written last.

A folder without a manifest does not exist for readers; one with a manifest is never changed.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from docml_contract.base import IncompleteArtifact, UnreadableDocument
from docml_contract.manifests import FileEntry, JobOutput, Manifest, utc_now
from docml_contract.names import CLAIM, MANIFEST
from resources.errors import MissingKey, StoreError
from resources.store.objects import PARALLEL_FILES
from resources.store.store import Store

# Up to this size a file is also hashed when a finished folder is checked: it costs no more than asking for its size.
SMALL_BYTES = 64 << 10


def read_manifest(store: Store, folder: str) -> Manifest | None:
    """The folder's manifest, or None: the folder is not finished. Raises UnreadableDocument, which is damage and not absence."""
    key = f"{folder}/{MANIFEST}"
    try:
        return Manifest.from_bytes(store.get(key), store.uri(key))
    except MissingKey:
        return None
    except UnreadableDocument as error:
        raise UnreadableDocument(f"{error}. Restore the file, or {_remedy(store, folder)}") from error


def read_recorded(store: Store, folder: str, entry: FileEntry) -> bytes:
    """The content of a file of a finished folder, which is what its entry says; IncompleteArtifact otherwise."""
    key = f"{folder}/{entry.path}"
    try:
        data = store.get(key)
    except MissingKey:
        raise IncompleteArtifact(f"{store.uri(folder)}: {entry.path}: missing. {_changed(store, folder)}") from None
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        cut = f"{len(data)} bytes, expected {entry.size}"
        problem = cut if len(data) != entry.size else f"content differs from its sha256 {entry.sha256[:12]}…"
        raise IncompleteArtifact(f"{store.uri(folder)}: {entry.path}: {problem}. {_changed(store, folder)}")
    return data


def read_finished(store: Store, folder: str, path: str) -> bytes:
    """The same by the file's path, of a folder that is known to be finished."""
    manifest = read_manifest(store, folder)
    if manifest is None:
        raise MissingKey(f"{store.uri(folder)} is not finished: it has no {MANIFEST}")
    return read_recorded(store, folder, manifest.file(path))


def _remedy(store: Store, folder: str) -> str:
    """How what is damaged is made again. A claim is never removed: the run would be another one."""
    if store.exists(f"{folder}/{CLAIM}"):
        return f"remove all files but {CLAIM} from the folder {store.uri(folder)} and execute the run again, which writes them from the claim"
    again = "classify the documents again" if folder.split("/")[-2:-1] == ["predictions"] else "execute the run again"
    return f"remove the folder {store.uri(folder)} and {again}, which makes it anew"


def _changed(store: Store, folder: str) -> str:
    return f"Something outside docml changed a finished folder: restore it, or {_remedy(store, folder)}"


def check_finished(store: Store, manifest: Manifest, folder: str, *, deep: bool = False) -> None:
    """Check that every file of the manifest is there with its size, small ones (deep: all) with their sha256.

    Raises IncompleteArtifact, naming every file that is missing or differs.
    """
    sizes = {found.key: found.size for found in store.list(folder)}

    def problem(entry: FileEntry) -> str | None:
        key = f"{folder}/{entry.path}"
        size = sizes.get(key)
        if size is None:
            return f"{entry.path}: missing"
        if size != entry.size:
            return f"{entry.path}: {size} bytes, expected {entry.size}"
        if (deep or size <= SMALL_BYTES) and hashlib.sha256(store.get(key)).hexdigest() != entry.sha256:
            return f"{entry.path}: content differs from its sha256 {entry.sha256[:12]}…"
        return None

    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        problems = [found for found in pool.map(problem, manifest.files) if found]
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise IncompleteArtifact(
            f"{store.uri(folder)} ({manifest.asset}, run {manifest.run}): {shown}. {_changed(store, folder)}"
        )


def is_damaged(store: Store, folder: str) -> bool:
    """Whether the folder is finished, as far as can be told, and is not what its manifest says."""
    try:
        manifest = read_manifest(store, folder)
        if manifest is not None:
            check_finished(store, manifest, folder)
    except (IncompleteArtifact, UnreadableDocument):
        return True
    return False


def publish_bytes(
    store: Store,
    folder: str,
    files: Mapping[str, bytes],
    *,
    copied: Mapping[str, FileEntry] | None = None,
    **manifest_fields: Any,
) -> Manifest:
    """Write files and, last, the manifest. A finished folder is left as it is: its manifest is returned.

    copied: files of other finished folders to take over under their names: key -> entry of their manifest.
    manifest_fields: asset, experiment, run, cache_key, data_version, inputs, code_version.
    """
    if finished := read_manifest(store, folder):
        return finished
    for source, entry in (copied or {}).items():
        store.copy(source, f"{folder}/{entry.path}")
    written = [
        FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for path, data in files.items()
    ]
    entries = tuple(sorted([*written, *(copied or {}).values()], key=lambda entry: entry.path))
    for path, data in sorted(files.items()):
        key = f"{folder}/{path}"
        if not store.put_if_absent(key, data) and store.get(key) != data:
            # Left by an attempt that never finished, or just now by a rival that has.
            if finished := read_manifest(store, folder):
                return finished
            store.put(key, data)
    return _publish_manifest(store, folder, entries, manifest_fields)


def publish_staged(store: Store, staged: str, folder: str, output: JobOutput, **manifest_fields: Any) -> Manifest:
    """Copy a job's staged output within the store and, last, write the manifest. Raises IncompleteArtifact, StoreError.

    A finished folder is left as it is: its manifest is returned.
    """
    if finished := read_manifest(store, folder):
        return finished
    pairs = [(f"{staged}/{entry.path}", f"{folder}/{entry.path}") for entry in output.files]
    gone = store.copy_many(store, pairs)
    if gone:
        raise IncompleteArtifact(
            f"{store.uri(staged)}: the job's OUTPUT.json names files that are not there: "
            + ", ".join(missing.source.removeprefix(f"{staged}/") for missing in gone[:20])
        )
    sizes = {found.key: found.size for found in store.list(folder)}
    wrong = [entry.path for entry in output.files if sizes.get(f"{folder}/{entry.path}") != entry.size]
    if wrong:
        raise IncompleteArtifact(
            f"{store.uri(staged)}: files do not have the sizes that the job's OUTPUT.json says: {', '.join(wrong[:20])}"
        )
    return _publish_manifest(store, folder, output.files, manifest_fields)


def _publish_manifest(store: Store, folder: str, files: tuple[FileEntry, ...], fields: Mapping[str, Any]) -> Manifest:
    manifest = Manifest(created_at=utc_now(), files=files, **fields)
    if store.put_if_absent(f"{folder}/{MANIFEST}", manifest.to_bytes()):
        return manifest
    winner = read_manifest(store, folder)
    if winner is None:
        raise StoreError(f"{store.uri(folder)}: its manifest was written and removed while this run published it")
    return winner
