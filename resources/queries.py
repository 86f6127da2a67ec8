"""Which queries are sent to a label database: one read-only SELECT, and nothing else."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from resources.errors import RefusedQuery

# Anywhere in the statement, data-modifying CTEs and SELECT INTO included.
_WRITES = (
    exp.Insert,
    exp.Update,
    exp.Delete,
    exp.Merge,
    exp.Create,
    exp.Drop,
    exp.Alter,
    exp.TruncateTable,
    exp.Copy,
    exp.Command,
    exp.Into,
    exp.Lock,
    exp.Set,
    exp.Pragma,
    exp.Attach,
    exp.Detach,
    exp.Transaction,
    exp.Commit,
    exp.Rollback,
    exp.Use,
    exp.Kill,
    exp.Grant,
)
# Functions of a SELECT that reach files, other servers, other sessions or settings.
_REFUSED_FUNCTIONS = frozenset(
    [
        "pg_read_file",
        "pg_read_binary_file",
        "pg_stat_file",
        "pg_terminate_backend",
        "pg_cancel_backend",
        "pg_reload_conf",
        "pg_rotate_logfile",
        "pg_promote",
        "pg_create_restore_point",
        "pg_switch_wal",
        "pg_advisory_lock",
        "pg_notify",
        "set_config",
        "setval",
        "nextval",
        "query_to_xml",
        "query_to_xmlschema",
        "query_to_xml_and_xmlschema",
        "cursor_to_xml",
        "database_to_xml",
        "load_extension",
        "readfile",
        "writefile",
        "fsdir",
        "edit",
        "fts3_tokenizer",
        "load_file",
        "sys_exec",
        "sys_eval",
        "xp_cmdshell",
        "openrowset",
        "opendatasource",
        "openquery",
    ]
)
_REFUSED_PREFIXES = ("pg_ls_", "lo_", "dblink", "pg_advisory_", "pg_file_", "pg_logical_", "pg_replication_")


def check_query(query: str, dialect: str) -> str:
    """`query` without its trailing semicolon and comment, or RefusedQuery. `dialect` as sqlglot names it.

    The refusal is a first fence. The second is the connection itself (a read-only transaction or file), the third a
    database role that may only read.
    """
    try:
        with _quietly():
            tokens = sqlglot.tokenize(query, read=dialect)
            statements = [statement for statement in sqlglot.parse(query, read=dialect) if _says_something(statement)]
    except (SqlglotError, RecursionError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RefusedQuery(f"LABELS_QUERY is not readable as {dialect} SQL: {detail[:300]}") from None
    if len(statements) != 1:
        raise RefusedQuery(f"LABELS_QUERY has {len(statements)} statements; expected exactly one SELECT")
    statement = statements[0]
    assert statement is not None
    if not isinstance(statement.unnest(), exp.Query) or isinstance(statement, exp.Values):
        raise RefusedQuery(f"LABELS_QUERY is a {_name(statement)} statement; expected one SELECT, nothing else is sent")
    for node in statement.walk():
        if isinstance(node, _WRITES):
            raise RefusedQuery(f"LABELS_QUERY contains {_name(node)}; expected one read-only SELECT")
        if isinstance(node, exp.Func):
            name = (node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()
            if name in _REFUSED_FUNCTIONS or name.startswith(_REFUSED_PREFIXES):
                raise RefusedQuery(
                    f"LABELS_QUERY calls {name}(), which reaches beyond the tables; expected a plain SELECT"
                )
    # One statement, so what follows the first semicolon is semicolons and comments. The line break ends a last comment.
    end = next((token.start for token in tokens if token.token_type.name == "SEMICOLON"), len(query))
    return query[:end].strip() + "\n"


@contextmanager
def _quietly() -> Iterator[None]:
    """sqlglot logs statements that it does not know; they are refused here, with a reason."""
    logger = logging.getLogger("sqlglot")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _says_something(statement: exp.Expr | None) -> bool:
    """False for the nothing, or the comment, behind a last semicolon."""
    return statement is not None and not isinstance(statement, exp.Semicolon)


def _name(node: exp.Expr) -> str:
    words: dict[type[exp.Expr], str] = {exp.Into: "SELECT INTO", exp.Lock: "a row lock (FOR UPDATE)"}
    if isinstance(node, exp.Command):
        return str(node.this).upper()
    return words.get(type(node), type(node).__name__.upper())
