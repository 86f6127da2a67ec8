"""The label table: one read-only SELECT over a database, as Arrow.

PostgreSQL goes through ADBC, which hands over Arrow batches, SQLite through Python's driver, any other database through SQLAlchemy. The URL holds a
password more often than not: it appears in no message, traceback or repr. Errors of the drivers, which like to quote it, are
replaced and not chained.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from resources.aws import resolve
from resources.errors import LabelError, ResourceError, SettingError, TooManyRows
from resources.label_drivers import Batches, check_names, postgres_batches, sqlalchemy_batches, sqlite_batches
from resources.label_values import join_chunks
from resources.queries import check_query

# A label query that takes longer than this is a mistake.
STATEMENT_TIMEOUT_SECONDS = 900
# So is one that gives more than this.
MAX_BYTES = 4 << 30
_DIALECTS = {"postgresql": "postgres", "postgres": "postgres", "sqlite": "sqlite", "mssql": "tsql", "mariadb": "mysql"}


class LabelSource:
    """A database and the permission to ask it one SELECT at a time.

    url: sqlite:///path, postgresql://…, another SQLAlchemy URL, or a reference `secretsmanager:NAME#key` to one of these,
    resolved when used.
    """

    def __init__(
        self, url: str, environment: Mapping[str, str], *, timeout_seconds: float = STATEMENT_TIMEOUT_SECONDS
    ) -> None:
        self._url = _Hidden(url)
        self._environment = _Hidden(dict(environment))
        self.timeout_seconds = timeout_seconds

    def __repr__(self) -> str:
        return "LabelSource(…)"

    def fetch(self, query: str, *, max_rows: int | None = None) -> pa.Table:
        """The rows of one SELECT, columns as the query names them.

        Types are plain (see label_values). Raises RefusedQuery before anything is sent, TooManyRows (as soon as there are more
        than max_rows), LabelError.
        """
        return self._guarded(lambda url: self._fetch(url, query, max_rows))

    def fingerprint(self, query: str) -> str:
        """64 hex digits that change when the rows change, whatever their order.

        PostgreSQL computes it by itself and sends one row; other databases send the rows.
        """
        return self._guarded(lambda url: self._fingerprint(url, query))

    def _fetch(self, url: str, query: str, max_rows: int | None) -> pa.Table:
        batches = list(self._batches(url, check_query(query, _dialect(url)), max_rows))
        if not batches or not batches[0][0]:
            raise LabelError("the label database sent no columns; is LABELS_QUERY a SELECT?")
        names, _ = batches[0]
        check_names(names)
        columns = [join_chunks(name, [columns[i] for _, columns in batches]) for i, name in enumerate(names)]
        return pa.table(columns, names=names)

    def _fingerprint(self, url: str, query: str) -> str:
        checked = check_query(query, _dialect(url))
        if _dialect(url) == "postgres":
            summary = (
                "SELECT count(*)::text || ' ' || coalesce(sum(hashtextextended(rows::text, 0)::numeric), 0)::text "
                f"FROM (\n{checked}\n) AS rows"
            )
            rows = [value for _, (column,) in self._batches(url, summary, 1) for value in column.to_pylist()]
            return hashlib.sha256(rows[0].encode()).hexdigest()
        return table_digest(self._fetch(url, query, None))

    def _batches(self, url: str, query: str, max_rows: int | None) -> Batches:
        dialect = _dialect(url)
        if dialect == "sqlite":
            return _at_most(max_rows, sqlite_batches(_sqlite_path(url), query, self.timeout_seconds))
        if dialect == "postgres":
            return _at_most(max_rows, postgres_batches(url, query, self.timeout_seconds))
        return _at_most(max_rows, sqlalchemy_batches(url, query, self.timeout_seconds))

    def _guarded(self, work: Callable[[str], Any]) -> Any:
        """Run `work(url)`; whatever a driver raises leaves without the URL, its parts, or the driver's frames."""
        url = resolve(self._url.value, self._environment.value)
        complaint: str
        try:
            return work(url)
        except ResourceError:
            raise
        except Exception as error:
            complaint = f"{type(error).__name__}: {_scrub(str(error), url)}"
        # Outside the except block: the driver's exception must not become this one's context.
        raise LabelError(f"the label database did not answer LABELS_QUERY: {complaint}")


def table_digest(table: pa.Table) -> str:
    """sha256 over the column names and the rows, in any order."""
    columns = [pc.fill_null(pc.cast(column, pa.large_string()), "\0") for column in table.columns]
    rows = pc.binary_join_element_wise(*columns, pa.scalar("\x1f", pa.large_string()))
    ordered = rows.take(pc.sort_indices(rows))
    digest = hashlib.sha256("\x1f".join(table.column_names).encode())
    for row in ordered.combine_chunks().to_pylist():
        digest.update(b"\x1e" + row.encode())
    return digest.hexdigest()


class _Hidden:
    """A value that no repr shows."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "…"


def _dialect(url: str) -> str:
    """sqlglot's name for the database behind a URL."""
    scheme = url.partition("://")[0].partition("+")[0].lower()
    if "://" not in url or not scheme.isalnum():
        raise SettingError(
            "DOCML_LABELS_URL is not a URL: expected sqlite:///path, postgresql://… or another SQLAlchemy URL"
        )
    return _DIALECTS.get(scheme, scheme)


def _sqlite_path(url: str) -> Path:
    """sqlite:///relative or sqlite:////absolute, as SQLAlchemy reads it."""
    path = unquote(urlsplit(url).path).removeprefix("/")
    if not path or not Path(path).is_file():
        raise LabelError(
            "the SQLite file that DOCML_LABELS_URL names does not exist (sqlite:///relative, sqlite:////absolute)"
        )
    return Path(path)


def _at_most(max_rows: int | None, batches: Batches) -> Batches:
    rows = size = 0
    try:
        for names, columns in batches:
            rows += len(columns[0]) if columns else 0
            size += sum(column.nbytes for column in columns)
            if size > MAX_BYTES:
                raise TooManyRows(
                    f"LABELS_QUERY gives more than {MAX_BYTES >> 20:,} MiB; select the columns that label documents, and no others"
                )
            if max_rows is not None and rows > max_rows:
                raise TooManyRows(
                    f"LABELS_QUERY gives more than MAX_LABEL_ROWS = {max_rows} rows; narrow the query or raise the limit"
                )
            yield names, columns
    finally:
        getattr(batches, "close", lambda: None)()


def _scrub(message: str, url: str) -> str:
    """A driver's message without the URL or any of its parts."""
    parts = urlsplit(url)
    secrets = {url, unquote(url), parts.netloc, parts.path, parts.path.lstrip("/"), parts.query}
    for attribute in ("username", "password", "hostname"):
        value = getattr(parts, attribute) or ""
        secrets |= {value, unquote(value)}
    secrets |= {
        str(Path(secret).resolve()) for secret in secrets if secret and "\0" not in secret and len(secret) < 500
    }
    # Addresses that the host name resolved to
    message = re.sub(r"\b\d{1,3}(\.\d{1,3}){3}\b", "…", message)
    for secret in sorted((s for s in secrets if len(s) > 2), key=len, reverse=True):
        message = message.replace(secret, "…")
    return " ".join(message.split())[:1000]
