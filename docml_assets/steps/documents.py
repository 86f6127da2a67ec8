"""Documents without labels: in a folder or bucket, or production artifacts that a SELECT names; and their copies, for a job."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from docml_assets.steps.work import StepError, Work
from docml_contract.base import canonical_json
from docml_contract.file_names import is_optional, is_pattern, matches, refusal
from docml_contract.untrusted_files import MARKER
from docml_contract.use_cases import UseCaseCode
from resources.label_values import as_text
from resources.store import LINK_SIZE, Store, StoredObject

GUID = "artifact_guid"
SHARDS = 16  # key ranges of production that are listed at once


class NoDocuments(StepError):
    """There is nothing to classify where documents were looked for, or the query does not say what."""


class NoRows(NoDocuments):
    """The query names no document."""


@dataclass(frozen=True)
class DocumentSet:
    """Documents to classify.

    files: by GUID, the source's object behind every file name. errors: why a document cannot be classified, by GUID. rows: what else
    process_func is told of a document. notes: what was passed over, for people.
    """

    source: Store
    files: Mapping[str, Mapping[str, StoredObject]]
    errors: Mapping[str, str]
    rows: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files.keys() | self.errors.keys())

    @property
    def versions(self) -> dict[str, str]:
        """By GUID, a hash of the versions of a document's files and of what process_func is told."""
        return {guid: self._version(guid) for guid in sorted(self.files)}

    def without(self, guids: Iterable[str]) -> "DocumentSet":
        """The others."""
        known = set(guids)
        return replace(
            self,
            files={guid: files for guid, files in self.files.items() if guid not in known},
            errors={guid: reason for guid, reason in self.errors.items() if guid not in known},
        )

    def _version(self, guid: str) -> str:
        files = sorted((name, stored.etag) for name, stored in self.files[guid].items())
        row = {key: str(value) for key, value in self.rows.get(guid, {}).items()}
        return hashlib.sha256(canonical_json([files, row])).hexdigest()


def documents_in(work: Work, source: Store) -> DocumentSet:
    """Documents as `<guid>/<file>`; or, where one input file is enough and no folders are there, every file a document by its name.

    What is hidden, or lies in a hidden folder (.git, .ipynb_checkpoints), is no document.
    """
    objects = [stored for stored in source.list() if not _is_hidden(stored.key)]
    nested = [stored for stored in objects if stored.key.count("/") == 1]
    single = _single_file(work)
    if not nested and single is not None:
        found = {stored.key: {single: stored} for stored in objects if _is_alike(stored.key, single)}
    else:
        found = _by_folder(nested)
    names = ", ".join(work.settings.files_from_prod)
    if not found:
        flat = f", or files like {single}, each a document" if single else ""
        raise NoDocuments(f"{source.uri()}: found no documents; expected <guid>/<file> with the files {names}{flat}")
    passed = len(objects) - sum(len(files) for files in found.values())
    documents = _checked(work, source, found, {}, passed)
    links = source.list_table(etags=False)["size"].to_pylist().count(LINK_SIZE) if source.local_path else 0
    notes = (f"{links} symbolic links are refused: put copies of the files there instead",) if links else ()
    return replace(documents, notes=(*documents.notes, *notes))


def documents_of(work: Work, query: str) -> DocumentSet:
    """The production artifacts whose `artifact_guid` the SELECT yields; its other columns go to process_func."""
    table = work.labels.fetch(query)
    if GUID not in table.column_names:
        raise NoDocuments(f"the query yields {', '.join(table.column_names)}; expected a column {GUID}")
    if nameless := table[GUID].null_count:
        raise NoDocuments(
            f"the query yields {nameless:,} rows whose {GUID} is NULL; expected the {GUID} of a document in each: leave them out with "
            f"{GUID} IS NOT NULL"
        )
    rows = _by_guid(table)
    if not rows:
        raise NoRows(f"the query yields no rows; expected the {GUID} of documents in production")
    wanted = (stored for stored in work.production.list() if stored.key.count("/") == 1)
    found = _by_folder([stored for stored in wanted if stored.key.split("/")[0] in rows])
    return _checked(work, work.production, {guid: found.get(guid, {}) for guid in rows}, rows, 0)


def choose_files(code: UseCaseCode, environment: Mapping[str, str], documents: DocumentSet) -> DocumentSet:
    """With those of each document's files that the use case's `files` takes. UseCaseError says what is wrong with it."""
    from docml_assets.reconcile.process import open_use_case  # polars loads where it is used

    if "files" not in code.functions:
        return documents
    asked = [
        (json.loads(json.dumps({GUID: guid, **documents.rows.get(guid, {})}, default=as_text)), sorted(files))
        for guid, files in documents.files.items()
    ]
    with open_use_case(code, environment) as worker:
        chosen = worker.files(asked)
    kept = zip(documents.files.items(), chosen, strict=True)
    return replace(documents, files={guid: {name: files[name] for name in names} for (guid, files), names in kept})


def copy_documents(work: Work, documents: DocumentSet, staged: str) -> dict[str, str]:
    """Copy the documents' files; why some could not be copied, by GUID."""
    there = {stored.key: stored.size for stored in work.store.list(staged)}
    pairs = {
        f"{staged}/{guid}/{file}": (guid, source.key)
        for guid, files in documents.files.items()
        for file, source in files.items()
        if there.get(f"{staged}/{guid}/{file}") != source.size
    }
    done = 0

    def copied() -> None:
        nonlocal done
        done += 1
        work.reporter.progress("files copied", done, len(pairs))

    gone = work.store.copy_many(documents.source, [(key, target) for target, (_, key) in pairs.items()], copied=copied)
    return {pairs[lost.target][0]: f"{lost.source} disappeared while it was being copied" for lost in gone}


def process_documents(work: Work, documents: DocumentSet, staged: str, errors: Mapping[str, str]) -> dict[str, str]:
    """Let process_func make its files anew, in the sandboxed workers of reconciliation; why it failed, by GUID."""
    from docml_assets.reconcile.process import ArtifactTask, cores, process_artifacts, remove_abandoned

    done = {
        stored.key.split("/")[-2] for stored in work.store.list(staged) if stored.key.split("/")[-1].startswith(MARKER)
    }
    tasks = [
        ArtifactTask({"artifact_guid": guid, **documents.rows.get(guid, {})}, f"{staged}/{guid}", tuple(files))
        for guid, files in documents.files.items()
        if guid not in errors and guid not in done
    ]
    finished = 0

    def processed() -> None:
        nonlocal finished
        finished += 1
        work.reporter.progress("artifacts processed", finished, len(tasks))

    if not tasks:
        remove_abandoned()
        return {}
    failures = process_artifacts(
        tasks,
        store=work.store,
        functions_source=work.functions_source,
        environment=work.environment,
        processes=min(work.settings.reconciliation_processes or cores(), len(tasks)),
        processed=processed,
    )
    return {failure.artifact_guid: failure.reason for failure in failures}


def _by_guid(table: pa.Table) -> dict[str, dict[str, Any]]:
    """What the query says of each document beside its GUID. NoDocuments where two rows of one document differ."""
    rows: dict[str, dict[str, Any]] = {}
    for row in table.to_pylist():
        guid = str(row.pop(GUID))
        if rows.setdefault(guid, row) != row:
            raise NoDocuments(
                f"the query yields two rows of the document {guid} that differ in {', '.join(k for k in row if row[k] != rows[guid][k])}; "
                f"expected one row per document: select fewer columns, or aggregate them (GROUP BY {GUID})"
            )
    return rows


def _by_folder(objects: list[StoredObject]) -> dict[str, dict[str, StoredObject]]:
    found: dict[str, dict[str, StoredObject]] = {}
    for stored in objects:
        guid, file = stored.key.split("/")
        found.setdefault(guid, {})[file] = stored
    return found


def _single_file(work: Work) -> str | None:
    """The one file that a document brings; None where it brings several, or as many as a pattern matches."""
    names = work.settings.files_from_prod
    return names[0] if len(names) == 1 and not is_pattern(names[0]) else None


def _is_hidden(key: str) -> bool:
    """Whether the file, or a folder that it lies in, begins with a dot."""
    return any(part.startswith(".") for part in key.split("/"))


def _is_alike(key: str, name: str) -> bool:
    """Whether a file of a flat folder can stand for the input file `name`: it has its suffix."""
    return "/" not in key and PurePosixPath(key).suffix == PurePosixPath(name).suffix


def _checked(
    work: Work,
    source: Store,
    found: Mapping[str, Mapping[str, StoredObject]],
    rows: Mapping[str, Mapping[str, Any]],
    passed: int,
) -> DocumentSet:
    files: dict[str, dict[str, StoredObject]] = {}
    errors: dict[str, str] = {}
    entries = work.settings.files_from_prod
    for guid, own in found.items():
        kept = {file: stored for file, stored in own.items() if any(matches(file, entry) for entry in entries)}
        reasons = list(_complaints(work, guid, kept))
        if reasons:
            errors[guid if refusal(guid) is None else ascii(guid)] = "; ".join(reasons)
        else:
            files[guid] = kept
        passed += len(own) - len(kept)
    notes = (f"{passed} files are not input of the model ({', '.join(entries)}) and are ignored",) if passed else ()
    return DocumentSet(source, files, errors, rows, notes)


def _complaints(work: Work, guid: str, files: Mapping[str, StoredObject]) -> Iterator[str]:
    for name in (guid, *files):
        if (reason := refusal(name)) is not None:
            yield f"the name {name!a} cannot be stored: {reason}"
    for entry in work.settings.files_from_prod:
        if not is_optional(entry, work.settings.files_optional) and not any(matches(file, entry) for file in files):
            yield f"{entry}: the document has no such file"
