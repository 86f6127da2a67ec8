"""Rows of a query from PostgreSQL (ADBC), SQLite (Python's own driver) and other databases (SQLAlchemy): sessions that only read, and end."""

import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from resources.errors import LabelError
from resources.label_values import TEXT_COLUMNS, column_from_values

BLOCK_ROWS = 50_000
# … and bytes that are turned into columns at a time.
BLOCK_BYTES = 64 << 20
# Of one value that SQLite reads or makes; it runs in this process.
MAX_VALUE_BYTES = 64 << 20
# Rows that PostgreSQL's driver holds at a time.
BATCH_BYTES = 2 << 20
# How much longer a database has that is to end the statement by itself.
GRACE_SECONDS = 5.0
# By SQLAlchemy's name of the database: sessions that only read, and statements that end. SQL Server knows no read-only session; there, the
# query's own check and the role hold (docs/deployment.md).
_READ_ONLY_SESSIONS: dict[str, tuple[str, ...]] = {
    "postgresql": ("SET TRANSACTION READ ONLY", "SET LOCAL statement_timeout = {milliseconds}"),
    "mysql": ("SET SESSION max_execution_time = {milliseconds}", "START TRANSACTION READ ONLY"),
    "mariadb": ("SET SESSION max_statement_time = {seconds}", "START TRANSACTION READ ONLY"),
    "oracle": ("SET TRANSACTION READ ONLY",),
    "mssql": ("SET LOCK_TIMEOUT {milliseconds}",),
}
# What SQLite is allowed to do for a query.
_READING = frozenset([sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE])
# PostgreSQL's types whose values its driver gives in another form: padded, in cents, as a signed number.
CAST_TO_TEXT = frozenset({"bpchar", "money", "oid", "xml"})
# Names and columns of some rows
Batches = Iterator[tuple[Sequence[str], Sequence[pa.Array]]]


def sqlite_batches(path: Path, query: str, timeout: float) -> Batches:
    """By Python's own driver: SQLite types values, not columns, and this one says what each value is; and it can be interrupted."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    connection.text_factory = lambda data: data.decode(errors="replace")
    connection.set_authorizer(lambda act, *_: sqlite3.SQLITE_OK if act in _READING else sqlite3.SQLITE_DENY)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    timer = threading.Timer(timeout, connection.interrupt)
    timer.start()
    try:
        cursor = connection.execute(query)
        yield from _row_batches([column[0] for column in cursor.description or ()], cursor)
    finally:
        timer.cancel()
        connection.close()


def _row_batches(names: list[str], rows: Iterable[Sequence[Any]]) -> Batches:
    """Blocks of rows as columns; first one without rows, for the names."""
    yield names, [pa.nulls(0)] * len(names)
    for block in _blocks(rows):
        columns = zip(*block, strict=True)
        yield names, [column_from_values(name, values) for name, values in zip(names, columns, strict=True)]


def _blocks(rows: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    """At most BLOCK_ROWS rows, and little more than BLOCK_BYTES, at a time."""
    block: list[Sequence[Any]] = []
    size = 0
    for row in rows:
        block.append(row)
        size += sum(len(value) for value in row if isinstance(value, str | bytes))
        if len(block) == BLOCK_ROWS or size > BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def postgres_batches(url: str, query: str, timeout: float) -> Batches:
    """From PostgreSQL, in a read-only transaction with a time limit of `timeout` seconds."""
    import adbc_driver_postgresql.dbapi as adbc

    libpq = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
    with adbc.connect(libpq) as connection, connection.cursor() as cursor:
        # autocommit is off, so that all of this is one transaction.
        cursor.execute("SET TRANSACTION READ ONLY")
        cursor.execute(f"SET LOCAL statement_timeout = {int(timeout * 1000)}")
        schema = cursor.adbc_execute_schema(query)
        check_names(schema.names)
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


def sqlalchemy_batches(url: str, query: str, timeout: float) -> Batches:
    """From any other database, in a session that only reads where it has one; broken off some seconds after `timeout`."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            for statement in _READ_ONLY_SESSIONS.get(connection.dialect.name, ()):
                connection.exec_driver_sql(
                    statement.format(seconds=int(timeout) or 1, milliseconds=int(timeout * 1000))
                )
            late = threading.Event()
            timer = threading.Timer(
                timeout + GRACE_SECONDS, _break_off, (connection.connection.driver_connection, late)
            )
            timer.start()
            try:
                # no_parameters: '%' and ':' are ordinary characters of the query
                connection.execution_options(stream_results=True, no_parameters=True)
                result = connection.exec_driver_sql(query)
                yield from _row_batches(list(result.keys()), result)
            finally:
                timer.cancel()
                if late.is_set():
                    connection.invalidate()
            connection.rollback()
    finally:
        engine.dispose()


def _break_off(driver_connection: Any, late: threading.Event) -> None:
    """End a statement that its database has not ended in time: by cancelling it where the driver can, else by hanging up."""
    late.set()
    with suppress(Exception):  # whatever a driver raises, the other end notices at the latest when the process ends
        getattr(driver_connection, "cancel", driver_connection.close)()


def check_names(names: Sequence[str]) -> None:
    """LabelError if two columns have one name."""
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise LabelError(f"LABELS_QUERY names columns twice: {', '.join(duplicates)}; give each its own name with AS")
