import sqlite3
import time
import traceback
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resources.errors import LabelError, RefusedQuery, SettingError, TooManyRows
from resources.labels import LabelSource, table_digest
from tests.servers.postgres import PostgresServer

QUERY = "SELECT artifact_guid, label, file_hash FROM labels"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    path = tmp_path / "some labels.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE labels (artifact_guid TEXT, label TEXT, file_hash TEXT, n)")
    connection.executemany(
        "INSERT INTO labels VALUES (?, ?, ?, ?)", [(f"g{i}", "abc"[i % 3], f"h{i}", i) for i in range(3000)]
    )
    connection.commit()
    connection.close()
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    postgres_server.execute(
        "DROP TABLE IF EXISTS labels",
        "CREATE TABLE labels (artifact_guid text, label text, file_hash text, n int)",
        "INSERT INTO labels SELECT 'g' || i, substr('abc', i % 3 + 1, 1), 'h' || i, i FROM generate_series(0, 2999) i",
    )
    return postgres_server.url


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


def test_fetch(url: str) -> None:
    table = LabelSource(url, {}).fetch(QUERY + " ORDER BY n;")
    assert table.column_names == ["artifact_guid", "label", "file_hash"]
    assert table.schema.types == [pa.string()] * 3
    assert table.num_rows == 3000
    assert table.slice(4, 1).to_pylist() == [{"artifact_guid": "g4", "label": "b", "file_hash": "h4"}]


def test_no_rows_still_have_columns(url: str) -> None:
    assert LabelSource(url, {}).fetch(QUERY + " WHERE 1 = 0").column_names == ["artifact_guid", "label", "file_hash"]


def test_max_rows(url: str) -> None:
    assert LabelSource(url, {}).fetch(QUERY, max_rows=3000).num_rows == 3000
    with pytest.raises(TooManyRows, match="MAX_LABEL_ROWS = 2999"):
        LabelSource(url, {}).fetch(QUERY, max_rows=2999)


def test_refused_before_anything_is_sent(url: str) -> None:
    source = LabelSource(url, {})
    for query in ("DROP TABLE labels", QUERY + "; DROP TABLE labels", "DELETE FROM labels"):
        for ask in (source.fetch, source.fingerprint):
            with pytest.raises(RefusedQuery):
                ask(query)
    assert source.fetch(QUERY).num_rows == 3000


def test_columns_of_one_name(url: str) -> None:
    with pytest.raises(LabelError, match=r"twice: label"):
        LabelSource(url, {}).fetch("SELECT label, label FROM labels")


def test_fingerprint_changes_with_the_rows_and_not_with_their_order(sqlite_url: str) -> None:
    source = LabelSource(sqlite_url, {})
    first = source.fingerprint(QUERY)
    assert len(first) == 64
    assert source.fingerprint(QUERY + " ORDER BY n DESC") == first
    connection = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    connection.execute("UPDATE labels SET label = 'z' WHERE n = 7")
    connection.commit()
    assert source.fingerprint(QUERY) != first
    connection.execute("UPDATE labels SET label = 'b' WHERE n = 7")
    connection.commit()
    connection.close()
    assert source.fingerprint(QUERY) == first


def test_fingerprint_of_postgres(postgres_server: PostgresServer, postgres_url: str) -> None:
    source = LabelSource(postgres_url, {})
    first = source.fingerprint(QUERY + ";")
    assert source.fingerprint(QUERY + " ORDER BY n DESC -- newest first") == first
    postgres_server.execute("UPDATE labels SET label = NULL WHERE n = 7")
    assert source.fingerprint(QUERY) != first
    assert len(source.fingerprint(QUERY + " WHERE n < 0")) == 64


def test_digest_tells_null_from_empty_and_columns_apart() -> None:
    tables = [
        pa.table({"a": ["x", None], "b": ["", "y"]}),
        pa.table({"a": ["x", ""], "b": ["", "y"]}),
        pa.table({"a": ["", "x"], "b": ["y", None]}),
        pa.table({"b": ["x", None], "a": ["", "y"]}),
        pa.table({"a": pa.array([], pa.string()), "b": pa.array([], pa.string())}),
    ]
    assert len({table_digest(table) for table in tables}) == len(tables)
    assert table_digest(tables[0]) == table_digest(tables[0].take([1, 0]))


def test_a_sqlite_column_of_mixed_types_comes_as_text(tmp_path: Path) -> None:
    path = tmp_path / "mixed.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (a, b)")
    connection.executemany(
        "INSERT INTO t VALUES (?, ?)", [(i, "x") for i in range(2000)] + [("text", b"\xff"), (None, None)]
    )
    connection.commit()
    connection.close()
    table = LabelSource(f"sqlite:///{path}", {}).fetch("SELECT a, b FROM t")
    assert table.schema.types == [pa.string(), pa.string()]
    assert table.num_rows == 2002
    assert table.slice(1999).to_pylist() == [
        {"a": "1999", "b": "x"},
        {"a": "text", "b": "\ufffd"},
        {"a": None, "b": None},
    ]
    with pytest.raises(TooManyRows):
        LabelSource(f"sqlite:///{path}", {}).fetch("SELECT a, b FROM t", max_rows=2001)


def test_text_that_is_not_utf8(postgres_server: PostgresServer, tmp_path: Path) -> None:
    path = tmp_path / "latin.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (a TEXT)")
    connection.execute("INSERT INTO t VALUES (CAST(x'636166e9' AS TEXT))")
    connection.commit()
    connection.close()
    assert LabelSource(f"sqlite:///{path}", {}).fetch("SELECT a FROM t")["a"].to_pylist() == ["caf\ufffd"]
    postgres_server.execute(
        "DROP DATABASE IF EXISTS ascii",
        "CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'",
    )
    ascii_url = postgres_server.url.replace("/postgres?", "/ascii?")
    PostgresServer(ascii_url).execute("CREATE TABLE t (a text)", r"INSERT INTO t VALUES (E'caf\xe9')")
    assert LabelSource(ascii_url, {}).fetch("SELECT a FROM t")["a"].to_pylist() == ["caf\ufffd"]


def test_types_of_postgres(postgres_server: PostgresServer) -> None:
    query = (
        "SELECT '0B0312C8-f1ef-5883-8c71-39f45f1a890b'::uuid AS artifact_guid, 'x'::name AS label, '\\xff00'::bytea AS file_hash, "
        "1.50::numeric AS n, '{\"a\": 1}'::jsonb AS j, NULL::uuid AS u"
    )
    row = LabelSource(postgres_server.url, {}).fetch(query).to_pylist()[0]
    assert row == {
        "artifact_guid": "0b0312c8-f1ef-5883-8c71-39f45f1a890b",
        "label": "x",
        "file_hash": "ff00",
        "n": "1.50",
        "j": '{"a": 1}',
        "u": None,
    }


def test_statement_timeouts(postgres_server: PostgresServer, sqlite_url: str) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n WHERE i < 0"
    for url in (postgres_server.url, sqlite_url):
        started = time.monotonic()
        with pytest.raises(LabelError, match=r"(?i)timeout|cancel|interrupt"):
            LabelSource(url, {}, timeout_seconds=0.3).fetch(endless)
        assert time.monotonic() - started < 60


def test_the_session_itself_only_reads(postgres_server: PostgresServer, postgres_url: str) -> None:
    """A function that the text does not give away meets the read-only transaction."""
    postgres_server.execute(
        "CREATE OR REPLACE FUNCTION innocent() RETURNS int LANGUAGE sql AS 'DELETE FROM labels RETURNING 1'",
    )
    with pytest.raises(LabelError, match="read-only transaction"):
        LabelSource(postgres_url, {}).fetch("SELECT innocent()")
    assert LabelSource(postgres_url, {}).fetch(QUERY).num_rows == 3000


SECRET = "hunter2-very-secret"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://someuser:{SECRET}@127.0.0.1:1/somedatabase",
        f"postgresql://someuser:{SECRET}@nowhere.invalid/somedatabase?sslmode=require",
        f"mysql+pymysql://someuser:{SECRET}@nowhere.invalid/somedatabase",
        f"sqlite:////nowhere/{SECRET}/somedatabase.db",
        f"nosuchdialect://someuser:{SECRET}@nowhere.invalid/somedatabase",
        f"{SECRET} somedatabase someuser",
    ],
)
def test_the_url_is_never_shown(url: str) -> None:
    source = LabelSource(url, {"DOCML_LABELS_URL": url})
    shown = [repr(source), str(source), repr(vars(source))]
    for ask in (source.fetch, source.fingerprint):
        with pytest.raises((LabelError, SettingError)) as caught:
            ask("SELECT 1 AS a")
        error: BaseException | None = caught.value
        shown += traceback.format_exception(error)
        while error is not None:
            shown += [repr(error), str(error), repr(error.args)]
            error = error.__cause__ or error.__context__
    for text in shown:
        for part in (SECRET, "someuser", "somedatabase", "nowhere.invalid"):
            # The frames show this file's own lines, which are not at stake.
            assert part not in text.replace(__file__, "")


def test_a_reference_is_resolved_when_used(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, str]]] = []

    def resolve(value: str, environment: Any) -> str:
        asked.append((value, environment))
        return sqlite_url

    monkeypatch.setattr("resources.labels.resolve", resolve)
    source = LabelSource("secretsmanager:labels#url", {"AWS_REGION": "x"})
    assert asked == []
    assert source.fetch(QUERY).num_rows == 3000
    assert asked == [("secretsmanager:labels#url", {"AWS_REGION": "x"})]


def test_other_databases_go_through_sqlalchemy(postgres_url: str) -> None:
    """By a scheme that ADBC does not know: the same PostgreSQL, spoken to by psycopg2."""
    from resources import labels

    postgres_url = postgres_url.replace("postgresql://", "postgresql+psycopg2://")
    rows = [batch.num_rows for batch in labels._pandas_batches(postgres_url, QUERY)]
    assert sum(rows) == 3000
    empty = list(labels._pandas_batches(postgres_url, QUERY + " WHERE n < 0"))
    assert [batch.schema.names for batch in empty] == [["artifact_guid", "label", "file_hash"]]
