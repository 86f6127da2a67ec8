import logging

import pytest

from resources.errors import RefusedQuery
from resources.queries import check_query
from tests.resources.hostile_queries import hostile_queries
from tests.resources.ordinary_queries import ordinary_queries

REFUSED = {
    "select 1; drop table labels": "2 statements",
    "select 1; select 2": "2 statements",
    "begin; select 1; commit": "3 statements",
    "": "0 statements",
    ";": "0 statements",
    "-- nothing": "0 statements",
    "drop table labels": "DROP",
    "delete from labels": "DELETE",
    "update labels set label = 'x'": "UPDATE",
    "insert into labels values (1)": "INSERT",
    "truncate labels": "TRUNCATE",
    "create table x as select 1": "CREATE",
    "alter table labels add column x int": "ALTER",
    "copy labels to program 'curl example.org'": "COPY",
    "copy (select 1) to '/tmp/x'": "COPY",
    "select * into other from labels": "SELECT INTO",
    "with gone as (delete from labels returning *) select * from gone": "DELETE",
    "with made as (insert into labels values (1) returning *) select * from made": "INSERT",
    "select * from labels for update": "row lock",
    "select pg_read_file('/etc/passwd')": "pg_read_file",
    "select PG_Read_File('/etc/passwd')": "pg_read_file",
    "select pg_catalog.pg_read_file('/etc/passwd')": "pg_read_file",
    "select * from pg_ls_dir('/')": "pg_ls_dir",
    "select lo_export(1, '/tmp/x')": "lo_export",
    "select * from dblink('host=x', 'drop table y') as t(a int)": "dblink",
    "select set_config('x', 'y', false)": "set_config",
    "select nextval('s')": "nextval",
    "select query_to_xml('delete from x', true, true, '')": "query_to_xml",
    "do $$ begin perform 1; end $$": "DO",
    "explain analyze select 1": "EXPLAIN",
    "vacuum": "VACUUM",
    "call something()": "CALL",
    "set role admin": "SET",
    "values (1)": "VALUES",
    "this is no sql (": "not readable",
    "select " + "(" * 5000 + "1" + ")" * 5000: "not readable",
}


@pytest.mark.parametrize(("query", "reason"), REFUSED.items(), ids=lambda text: text[:40])
def test_refused(query: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(RefusedQuery, match=reason):
        check_query(query, "postgres")
    assert caplog.records == []


@pytest.mark.parametrize(
    "query",
    ["pragma writable_schema = 1", "attach 'x' as y", "select load_extension('x')", "select readfile('/etc/passwd')"],
)
def test_refused_of_sqlite(query: str) -> None:
    with pytest.raises(RefusedQuery):
        check_query(query, "sqlite")


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("select a, b from t where c = 'x; drop table t'", "SELECT a, b FROM t WHERE c = 'x; drop table t'"),
        ("SELECT 1 ;", "SELECT 1"),
        ("select 1;;  -- done; really", "SELECT 1"),
        ("(select 1)", "(SELECT 1)"),
        (r"select $$;drop 'table\ t;$$", r"SELECT ';drop ''table\ t;'"),
        ("/* a; b */ select 1 -- c", "SELECT 1"),
        ("select 'it''s', \"O\"\"Brien\" from t", "SELECT 'it''s', \"O\"\"Brien\" FROM t"),
    ],
)
def test_what_is_sent_is_written_anew(query: str, sent: str) -> None:
    assert check_query(query, "postgres") == sent + "\n"


def test_comments_that_a_database_would_execute_are_not_sent() -> None:
    query = "SELECT a /*!50000 , load_file('/etc/passwd') */ FROM t /*+ SET_VAR(max_execution_time = 0) */"
    assert check_query(query, "mysql") == "SELECT a FROM t\n"


@pytest.mark.parametrize("dialect", ["postgres", "sqlite", "mysql", "tsql"])
def test_a_hundred_ordinary_queries_are_accepted_and_stay_what_they_are(dialect: str) -> None:
    queries = ordinary_queries(dialect)
    assert len(queries) >= 100
    for query in queries:
        sent = check_query(query, dialect)
        assert check_query(sent, dialect) == sent


@pytest.mark.parametrize("dialect", ["postgres", "sqlite", "mysql", "tsql"])
def test_a_hundred_hostile_queries_are_refused(dialect: str) -> None:
    queries = hostile_queries(dialect)
    assert len(queries) >= 100
    accepted = []
    for query in queries:
        try:
            accepted.append((query, check_query(query, dialect)))
        except RefusedQuery:
            continue
    assert accepted == []


def test_a_query_of_any_length_is_answered_soon() -> None:
    for query in ("select " + "1," * 200_000 + "1", "select " + "- " * 40_000 + "1", "select " + "not " * 20_000 + "a"):
        with pytest.raises(RefusedQuery):
            check_query(query, "postgres")
