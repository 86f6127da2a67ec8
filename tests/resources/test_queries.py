import logging

import pytest

from resources.errors import RefusedQuery
from resources.queries import check_query

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
        ("select a, b from t where c = 'x; drop table t'", None),
        ("SELECT 1 ;", "SELECT 1"),
        ("select 1;;  -- done; really", "select 1"),
        ("with a as (select 1) select * from a union all select 2 order by 1 limit 5", None),
        ("(select 1)", None),
        ("select $$;drop table t;$$", None),
        ("/* a; b */ select 1 -- c", None),
        ("select md5(x), count(*) over (partition by y) from t join lateral (select 1) z on true", None),
    ],
)
def test_accepted_and_sent_as_written(query: str, sent: str | None) -> None:
    assert check_query(query, "postgres") == (sent or query) + "\n"
