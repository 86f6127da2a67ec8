"""The label table: one read-only SELECT over a database, as Arrow.

PostgreSQL and SQLite go through ADBC, which hands over Arrow batches; any other SQLAlchemy URL through pandas. The URL holds a
password more often than not: it appears in no message, traceback or repr. Errors of the drivers, which like to quote it, are
replaced and not chained.
"""

import hashlib
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from resources.errors import LabelError, ResourceError, SettingError, TooManyRows
from resources.queries import check_query
from resources.secrets import resolve

# A label query that takes longer than this is a mistake.
STATEMENT_TIMEOUT_SECONDS = 900
PANDAS_CHUNK_ROWS = 50_000
# Rows that PostgreSQL's driver holds at a time.
BATCH_BYTES = 2 << 20
_DIALECTS = {"postgresql": "postgres", "postgres": "postgres", "sqlite": "sqlite", "mssql": "tsql", "mariadb": "mysql"}

Batches = Iterator[pa.RecordBatch]


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

        Text that is not UTF-8 comes with replacement characters (U+FFFD). Raises RefusedQuery before anything is sent,
        TooManyRows (as soon as there are more than max_rows), LabelError.
        """
        return self._guarded(lambda url: self._fetch(url, query, max_rows))

    def fingerprint(self, query: str) -> str:
        """64 hex digits that change when the rows change, whatever their order.

        PostgreSQL computes it by itself and sends one row; other databases send the rows.
        """
        return self._guarded(lambda url: self._fingerprint(url, query))

    def _fetch(self, url: str, query: str, max_rows: int | None) -> pa.Table:
        batches = list(self._batches(url, check_query(query, _dialect(url)), max_rows))
        if not batches:
            raise LabelError("the label database sent no columns; is LABELS_QUERY a SELECT?")
        names = batches[0].schema.names
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise LabelError(
                f"LABELS_QUERY names columns twice: {', '.join(duplicates)}; give each its own name with AS"
            )
        columns = [pa.chunked_array([batch.column(i) for batch in batches]) for i in range(len(names))]
        return pa.table([_plain(column) for column in columns], names=names)

    def _fingerprint(self, url: str, query: str) -> str:
        checked = check_query(query, _dialect(url))
        if _dialect(url) == "postgres":
            summary = (
                "SELECT count(*)::text || ' ' || coalesce(sum(hashtextextended(rows::text, 0)::numeric), 0)::text "
                f"FROM (\n{checked}\n) AS rows"
            )
            rows = [value for batch in self._batches(url, summary, 1) for value in batch.column(0).to_pylist()]
            return hashlib.sha256(rows[0].encode()).hexdigest()
        return table_digest(self._fetch(url, query, None))

    def _batches(self, url: str, query: str, max_rows: int | None) -> Batches:
        dialect = _dialect(url)
        if dialect == "sqlite":
            return _sqlite_batches(_sqlite_path(url), query, max_rows, self.timeout_seconds)
        if dialect == "postgres":
            return _at_most(max_rows, _postgres_batches(url, query, self.timeout_seconds))
        return _at_most(max_rows, _pandas_batches(url, query))

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
            "DOCML_LABELS_URL is no URL: expected sqlite:///path, postgresql://… or another SQLAlchemy URL"
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


def _sqlite_batches(path: Path, query: str, max_rows: int | None, timeout: float) -> Batches:
    import adbc_driver_sqlite.dbapi as adbc

    uri = f"{path.resolve().as_uri()}?mode=ro"
    # SQLite's ADBC driver cannot be interrupted. Counting first can: a query that never ends, ends here.
    _, ((rows,),) = _interruptible_sqlite(uri, f"SELECT count(*) FROM (\n{query})", timeout, 1)
    if max_rows is not None and rows > max_rows:
        raise _too_many(max_rows)
    try:
        return iter(list(_adbc_batches(adbc.connect(uri), [], query, {})))
    except (adbc.Error, OSError) as error:
        # SQLite types values, ADBC columns, by their first values: a column that mixes types is read again as text.
        if "mismatch" not in str(error).lower():
            raise
    return _mixed_sqlite_batches(uri, query, timeout)


def _mixed_sqlite_batches(uri: str, query: str, timeout: float) -> Batches:
    rows = _interruptible_sqlite(uri, query, timeout, PANDAS_CHUNK_ROWS)
    names = next(rows)
    schema = pa.schema([(name, pa.string()) for name in names])
    yield pa.RecordBatch.from_pylist([], schema=schema)
    for block in rows:
        columns = [pa.array([_text(value) for value in column], pa.string()) for column in zip(*block, strict=True)]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _interruptible_sqlite(uri: str, query: str, timeout: float, block_rows: int) -> Iterator[list[Any]]:
    """The column names, then blocks of rows."""
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
    connection.text_factory = lambda data: data.decode(errors="replace")
    timer = threading.Timer(timeout, connection.interrupt)
    timer.start()
    try:
        cursor = connection.execute(query)
        yield [column[0] for column in cursor.description]
        while block := cursor.fetchmany(block_rows):
            yield block
    finally:
        timer.cancel()
        connection.close()


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return None if value is None else str(value)


def _postgres_batches(url: str, query: str, timeout: float) -> Batches:
    import adbc_driver_postgresql.dbapi as adbc

    libpq = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
    # autocommit is off, so these three share one transaction.
    before = ["SET TRANSACTION READ ONLY", f"SET LOCAL statement_timeout = {int(timeout * 1000)}"]
    return _adbc_batches(
        adbc.connect(libpq), before, query, {"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)}
    )


def _adbc_batches(connection: Any, before: Iterable[str], query: str, options: Mapping[str, str]) -> Batches:
    with connection, connection.cursor() as cursor:
        for statement in before:
            cursor.execute(statement)
        cursor.adbc_statement.set_options(**options)
        cursor.execute(query)
        reader = cursor.fetch_record_batch()
        yield pa.RecordBatch.from_arrays([pa.array([], field.type) for field in reader.schema], schema=reader.schema)
        for batch in reader:
            # A copy of the exact size: the driver's buffers are up to twice as large.
            yield batch.take(pa.array(np.arange(batch.num_rows)))


def _pandas_batches(url: str, query: str) -> Batches:
    import pandas as pd
    import sqlalchemy

    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect().execution_options(stream_results=True) as connection:
            for frame in pd.read_sql_query(sqlalchemy.text(query), connection, chunksize=PANDAS_CHUNK_ROWS):
                yield pa.RecordBatch.from_pandas(frame, preserve_index=False)
            connection.rollback()
    finally:
        engine.dispose()


def _at_most(max_rows: int | None, batches: Batches) -> Batches:
    rows = 0
    try:
        for batch in batches:
            rows += batch.num_rows
            if max_rows is not None and rows > max_rows:
                raise _too_many(max_rows)
            yield batch
    finally:
        getattr(batches, "close", lambda: None)()


def _too_many(max_rows: int) -> TooManyRows:
    return TooManyRows(
        f"LABELS_QUERY gives more than MAX_LABEL_ROWS = {max_rows} rows; narrow the query or raise the limit"
    )


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with UUIDs, numerics and JSON as text, bytes as hexadecimal text, and text as valid UTF-8: drivers pass on what
    the database holds."""
    kind = column.type
    if isinstance(kind, pa.UuidType):
        return _texts(str(value) if value is not None else None for value in column.to_pylist())
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _texts(value.hex() if value is not None else None for value in column.to_pylist())
    if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
        return column
    raw = pc.cast(column, pa.large_binary())
    try:
        return pc.cast(raw, pa.string())
    except pa.ArrowInvalid:
        return _texts(value.decode(errors="replace") if value is not None else None for value in raw.to_pylist())


def _texts(values: Iterable[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(list(values), pa.string())])


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
