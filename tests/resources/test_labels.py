import sqlite3
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from resources.errors import LabelError, RefusedQuery, SettingError, TooManyRows
from resources.label_values import TEXT_COLUMNS
from resources.labels import LabelSource, table_digest
from tests.servers.postgres import PostgresServer

QUERY = "SELECT artifact_guid, label, file_hash FROM labels"


def through_sqlalchemy(postgres_url: str) -> str:
    """The same PostgreSQL by a scheme that ADBC does not know, spoken to by psycopg2."""
    from sqlalchemy.dialects import registry

    registry.register("risingwave.psycopg2", "sqlalchemy.dialects.postgresql.psycopg2", "PGDialect_psycopg2")
    return postgres_url.replace("postgresql://", "risingwave+psycopg2://")


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


def test_most_bytes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resources.labels.MAX_BYTES", 20_000)
    with pytest.raises(TooManyRows, match="gives more than 0 MiB; select the columns that label documents"):
        LabelSource(url, {}).fetch(QUERY)


def test_what_sqlite_makes_of_a_value_is_bounded(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = f"replace(label, label, '{'a' * 1000}')"
    longest = "replace({}, 'a', '" + "a" * 1000 + "')"
    query = f"SELECT {longest.format(longest.format(longer))} AS label FROM labels"
    with pytest.raises(LabelError, match="too big"):
        LabelSource(sqlite_url, {}).fetch(query)
    monkeypatch.setattr("resources.label_drivers.BLOCK_BYTES", 1_000)
    assert LabelSource(sqlite_url, {}).fetch(QUERY).num_rows == 3000


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
        {"a": "text", "b": "ff"},
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
    replace(postgres_server, url=ascii_url).execute("CREATE TABLE t (a text)", r"INSERT INTO t VALUES (E'caf\xe9')")
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


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n WHERE i < 0"


def test_statement_timeouts(postgres_server: PostgresServer, sqlite_url: str) -> None:
    for url in (postgres_server.url, through_sqlalchemy(postgres_server.url), sqlite_url):
        started = time.monotonic()
        with pytest.raises(LabelError, match=r"(?i)timeout|cancel|interrupt"):
            LabelSource(url, {}, timeout_seconds=0.3).fetch(ENDLESS)
        assert time.monotonic() - started < 60


def test_a_database_that_keeps_no_time_limit_is_broken_off(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.label_drivers._READ_ONLY_SESSIONS", {})
    monkeypatch.setattr("resources.label_drivers.GRACE_SECONDS", 0.0)
    with pytest.raises(LabelError, match="cancel"):
        LabelSource(through_sqlalchemy(postgres_server.url), {}, timeout_seconds=0.5).fetch(ENDLESS)


@pytest.mark.parametrize("through", [str, through_sqlalchemy])
def test_the_session_itself_only_reads(
    postgres_server: PostgresServer, postgres_url: str, through: Callable[[str], str]
) -> None:
    """A function that the text does not give away, since a view calls it, meets the read-only transaction."""
    postgres_server.execute(
        "CREATE OR REPLACE FUNCTION innocent() RETURNS int LANGUAGE sql AS 'DELETE FROM labels RETURNING 1'",
        "CREATE OR REPLACE VIEW harmless AS SELECT innocent() AS a",
    )
    with pytest.raises(LabelError, match="read-only transaction"):
        LabelSource(through(postgres_url), {}).fetch("SELECT a FROM harmless")
    assert LabelSource(postgres_url, {}).fetch(QUERY).num_rows == 3000
    postgres_server.execute("DROP VIEW harmless")


def test_sqlite_itself_only_reads(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resources.labels.check_query", lambda query, dialect: query)
    for query in ("PRAGMA writable_schema = 1", "ATTACH 'x' AS y", "DELETE FROM labels", "CREATE TEMP TABLE x (a)"):
        with pytest.raises(LabelError, match=r"not authorized|readonly"):
            LabelSource(sqlite_url, {}).fetch(query)


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
    source = LabelSource(through_sqlalchemy(postgres_url), {})
    query = QUERY.replace(" FROM", ", n, CASE WHEN n % 2 = 0 THEN n END AS even, '12%:x' AS odd FROM")
    table = source.fetch(query + " ORDER BY n")
    assert table.slice(3, 2).to_pylist() == [
        {"artifact_guid": f"g{n}", "label": "abc"[n % 3], "file_hash": f"h{n}", "n": n, "even": even, "odd": "12%:x"}
        for n, even in ((3, None), (4, 4))
    ]
    assert source.fetch(QUERY + " WHERE n < 0").column_names == ["artifact_guid", "label", "file_hash"]
    with pytest.raises(TooManyRows):
        source.fetch(QUERY, max_rows=2999)


UUID = "b6753a83-34d8-5d31-a546-ab10fe34687c"
# type -> (literal, its text)
POSTGRES_TYPES: dict[str, tuple[str, str | None]] = {
    "text": ("'Größe'", "Größe"),
    "citext": ("'Invoice'", "Invoice"),
    "varchar(20)": ("'abc'", "abc"),
    "char(36)": ("'abc'", "abc"),
    "uuid": (f"'{UUID.upper()}'", UUID),
    "bytea": (r"'\x00ff'", "00ff"),
    "int": ("7", "7"),
    "bigint": ("9007199254740993", "9007199254740993"),
    "numeric": ("1.50", "1.50"),
    "money": ("'12.34'", "$12.34"),
    "bool": ("true", "true"),
    "date": ("'2026-01-02'", "2026-01-02"),
    "timestamptz": ("'2026-01-02 03:04:05+00'", "2026-01-02 03:04:05.000000+00:00"),
    "json": ("'[1]'", "[1]"),
    "jsonb": ("'{}'", "{}"),
    "inet": ("'10.0.0.1'", "10.0.0.1"),
    "macaddr": ("'08:00:2b:01:02:03'", "08:00:2b:01:02:03"),
    "bit(3)": ("B'101'", "101"),
    "text[]": ("'{a,b}'", "{a,b}"),
    "inet[]": ("'{10.0.0.1}'", "{10.0.0.1}"),
    "mood": ("'happy'", "happy"),
    "short_text": ("'abc'", "abc"),
    "int4range": ("'[1,5)'", "[1,5)"),
    "interval": ("'1 day 02:00'", "1 day 02:00:00"),
    "xml": ("NULL", None),  # this server is built without it
    '"char"': ("'c'", "c"),
    "oid": ("4294967295", "4294967295"),
    "pair": ("ROW(1, 'x')", "(1,x)"),
}


@pytest.fixture(scope="module")
def typed_postgres(postgres_server: PostgresServer) -> str:
    functions = {
        "in": ("cstring", "citext"),
        "out": ("citext", "cstring"),
        "recv": ("internal", "citext"),
        "send": ("citext", "bytea"),
    }
    postgres_server.execute(
        "DROP TYPE IF EXISTS citext CASCADE",
        "CREATE TYPE citext",
        # As contrib/citext does, which this build of the server lacks.
        *(
            f"CREATE FUNCTION citext{name}({takes}) RETURNS {gives} AS 'text{name}' LANGUAGE internal IMMUTABLE STRICT"
            for name, (takes, gives) in functions.items()
        ),
        "CREATE TYPE citext (INPUT = citextin, OUTPUT = citextout, RECEIVE = citextrecv, SEND = citextsend, "
        "INTERNALLENGTH = VARIABLE, STORAGE = extended)",
        "CREATE TYPE mood AS ENUM ('happy', 'sad')",
        "CREATE DOMAIN short_text AS text CHECK (length(value) < 9)",
        "CREATE TYPE pair AS (a int, b text)",
    )
    return postgres_server.url


@pytest.mark.parametrize("kind", POSTGRES_TYPES)
def test_every_postgres_type_is_its_text(typed_postgres: str, kind: str) -> None:
    """As label, hash and GUID: the text that people see, never the bytes that PostgreSQL sends."""
    literal, expected = POSTGRES_TYPES[kind]
    columns = ", ".join(f"({literal})::{kind} AS {name}" for name in TEXT_COLUMNS)
    table = LabelSource(typed_postgres, {}).fetch(f"SELECT {columns}")
    text = pl.DataFrame(pl.from_arrow(table)).with_columns(pl.all().cast(pl.String))
    assert text.rows() == [(expected,) * 3]


@pytest.mark.parametrize("kind", POSTGRES_TYPES)
def test_every_type_through_sqlalchemy_is_text_or_refused_by_name(typed_postgres: str, kind: str) -> None:
    literal, expected = POSTGRES_TYPES[kind]
    source = LabelSource(through_sqlalchemy(typed_postgres), {})
    query = f"SELECT ({literal})::{kind} AS label"
    if kind in ("int4range", "interval"):
        with pytest.raises(LabelError, match=r"column label: .*label::text"):
            source.fetch(query)
        query = f"SELECT ({literal})::{kind}::text AS label"
    elif kind == "char(36)":
        expected = f"{'abc':36}"  # what the driver gives; reconciliation says that blanks stand at an end
    elif kind in ("text[]", "inet[]"):
        expected = '["a", "b"]' if kind == "text[]" else '["10.0.0.1"]'
    table = source.fetch(query)
    assert pl.DataFrame(pl.from_arrow(table)).with_columns(pl.all().cast(pl.String)).rows() == [(expected,)]


def test_further_columns_keep_what_is_plain_and_say_the_rest_as_text(typed_postgres: str) -> None:
    query = (
        "SELECT 3 AS pages, 1.5::float8 AS weight, true AS signed, date '2026-01-31' AS day, '{1,2}'::int[] AS numbers, "
        "inet '10.0.0.1' AS scanner, '1 day'::interval AS waited, 'A' AS \"Sp\"\"alte\" -- and a comment"
    )
    assert LabelSource(typed_postgres, {}).fetch(query).to_pylist() == [
        {
            "pages": 3,
            "weight": 1.5,
            "signed": True,
            "day": date(2026, 1, 31),
            "numbers": [1, 2],
            "scanner": "10.0.0.1",
            "waited": "1 day",
            'Sp"alte': "A",
        }
    ]


@pytest.mark.parametrize("changes_at", [1, 1000, 1200, 2000])
@pytest.mark.parametrize("first", [1, 1.5, "text", b"\x0a", None])
def test_sqlite_columns_that_change_their_type_lose_no_row(tmp_path: Path, changes_at: int, first: object) -> None:
    """Every value is its own text; blobs are hexadecimal; a column of NULLs takes what comes behind."""
    after: list[object] = [value for value in (7, 2.5, "other", b"\xff", None) if type(value) is not type(first)]
    connection = sqlite3.connect(tmp_path / "labels.db")
    connection.execute("CREATE TABLE t (a, label TEXT)")
    rows = [first] * changes_at + after * 50
    connection.executemany("INSERT INTO t VALUES (?, 'x')", [(value,) for value in rows])
    connection.commit()
    connection.close()
    texts = {
        7: "7",
        2.5: "2.5",
        1: "1",
        1.5: "1.5",
        "other": "other",
        "text": "text",
        b"\xff": "ff",
        b"\x0a": "0a",
        None: None,
    }
    table = LabelSource(f"sqlite:///{tmp_path}/labels.db", {}).fetch("SELECT a, label FROM t")
    assert table["a"].to_pylist() == [texts[value] for value in rows]  # type: ignore[index]


def test_a_sqlite_column_of_one_type_and_nulls_keeps_it(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "labels.db")
    connection.execute("CREATE TABLE t (n)")
    connection.executemany("INSERT INTO t VALUES (?)", [(None,)] * 60_000 + [(2**53 + 1,)])
    connection.commit()
    connection.close()
    column = LabelSource(f"sqlite:///{tmp_path}/labels.db", {}).fetch("SELECT n FROM t")["n"]
    assert (column.type, column.null_count, column[-1].as_py()) == (pa.int64(), 60_000, 2**53 + 1)
