"""The label table: one read-only SELECT over a database, as Arrow.

PostgreSQL goes through ADBC, which hands over Arrow batches, SQLite through Python's driver, any other database through SQLAlchemy. The URL holds a
password more often than not: it appears in no message, traceback or repr. Errors of the drivers, which like to quote it, are
replaced and not chained.
"""

import hashlib
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from resources.errors import LabelError, ResourceError, SettingError, TooManyRows
from resources.label_values import TEXT_COLUMNS, column_from_values, join_chunks
from resources.queries import check_query
from resources.secrets import resolve

# A label query that takes longer than this is a mistake.
STATEMENT_TIMEOUT_SECONDS = 900
BLOCK_ROWS = 50_000
# Rows that PostgreSQL's driver holds at a time.
BATCH_BYTES = 2 << 20
# PostgreSQL's types whose values its driver gives in another form: padded, in cents, as a signed number.
CAST_TO_TEXT = frozenset({"bpchar", "money", "oid", "xml"})
_DIALECTS = {"postgresql": "postgres", "postgres": "postgres", "sqlite": "sqlite", "mssql": "tsql", "mariadb": "mysql"}

# Names and columns of some rows
Batches = Iterator[tuple[Sequence[str], Sequence[pa.Array]]]


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
        _check_names(names)
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
            return _at_most(max_rows, _sqlite_batches(_sqlite_path(url), query, self.timeout_seconds))
        if dialect == "postgres":
            return _at_most(max_rows, _postgres_batches(url, query, self.timeout_seconds))
        return _at_most(max_rows, _sqlalchemy_batches(url, query))

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


def _sqlite_batches(path: Path, query: str, timeout: float) -> Batches:
    """By Python's own driver: SQLite types values, not columns, and this one says what each value is; and it can be interrupted."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    connection.text_factory = lambda data: data.decode(errors="replace")
    timer = threading.Timer(timeout, connection.interrupt)
    timer.start()
    try:
        cursor = connection.execute(query)
        yield from _row_batches([column[0] for column in cursor.description or ()], cursor.fetchmany)
    finally:
        timer.cancel()
        connection.close()


def _row_batches(names: list[str], fetch: Callable[[int], Sequence[Sequence[Any]]]) -> Batches:
    """Blocks of rows as columns; first one without rows, for the names."""
    yield names, [pa.nulls(0)] * len(names)
    while block := fetch(BLOCK_ROWS):
        columns = zip(*block, strict=True)
        yield names, [column_from_values(name, values) for name, values in zip(names, columns, strict=True)]


def _postgres_batches(url: str, query: str, timeout: float) -> Batches:
    import adbc_driver_postgresql.dbapi as adbc

    libpq = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
    with adbc.connect(libpq) as connection, connection.cursor() as cursor:
        # autocommit is off, so that all of this is one transaction.
        cursor.execute("SET TRANSACTION READ ONLY")
        cursor.execute(f"SET LOCAL statement_timeout = {int(timeout * 1000)}")
        schema = cursor.adbc_execute_schema(query)
        _check_names(schema.names)
        cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)})
        cursor.execute(_with_casts(schema, query))
        reader = cursor.fetch_record_batch()
        yield reader.schema.names, [pa.array([], field.type) for field in reader.schema]
        for batch in reader:
            # A copy of the exact size: the driver's buffers are up to twice as large.
            yield reader.schema.names, batch.take(pa.array(np.arange(batch.num_rows))).columns


def _with_casts(schema: pa.Schema, query: str) -> str:
    """The query, PostgreSQL itself casting to text what its driver does not know or gives in another form than people know it."""
    if not any(_needs_cast(field) for field in schema):
        return query
    columns = ", ".join(_text_of(field) if _needs_cast(field) else _quoted(field.name) for field in schema)
    return f"SELECT {columns} FROM (\n{query}) AS labels"


def _text_of(field: pa.Field) -> str:
    """As people see it: an address without the /32 that a cast of `inet` adds, fixed-width text without the blanks behind it."""
    name = _quoted(field.name)
    if _postgres_type(field) == "bpchar":
        return f"{name}::text AS {name}"
    return f"CASE WHEN {name} IS DISTINCT FROM NULL THEN format('%s', {name}) END AS {name}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _postgres_type(field: pa.Field) -> str:
    return (field.metadata or {}).get(b"POSTGRESQL:type", b"").decode()


def _needs_cast(field: pa.Field) -> bool:
    if _postgres_type(field) in CAST_TO_TEXT or (field.name in TEXT_COLUMNS and pa.types.is_nested(field.type)):
        return True
    return not _driver_knows(field.type)


def _driver_knows(kind: pa.DataType) -> bool:
    """Whether a type's values, or those within, are more than the bytes that PostgreSQL sends."""
    if pa.types.is_nested(kind):
        return all(_driver_knows(kind.field(i).type) for i in range(kind.num_fields))
    if isinstance(kind, pa.OpaqueType):
        return not pa.types.is_binary(kind.storage_type)
    return not pa.types.is_interval(kind)


def _sqlalchemy_batches(url: str, query: str) -> Batches:
    import sqlalchemy

    engine = sqlalchemy.create_engine(url)
    try:
        # no_parameters: '%' and ':' are ordinary characters of the query
        with engine.connect().execution_options(stream_results=True, no_parameters=True) as connection:
            result = connection.exec_driver_sql(query)
            yield from _row_batches(list(result.keys()), result.fetchmany)
            connection.rollback()
    finally:
        engine.dispose()


def _at_most(max_rows: int | None, batches: Batches) -> Batches:
    rows = 0
    try:
        for names, columns in batches:
            rows += len(columns[0]) if columns else 0
            if max_rows is not None and rows > max_rows:
                raise TooManyRows(
                    f"LABELS_QUERY gives more than MAX_LABEL_ROWS = {max_rows} rows; narrow the query or raise the limit"
                )
            yield names, columns
    finally:
        getattr(batches, "close", lambda: None)()


def _check_names(names: Sequence[str]) -> None:
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise LabelError(f"LABELS_QUERY names columns twice: {', '.join(duplicates)}; give each its own name with AS")


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
