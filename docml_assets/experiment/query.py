"""LABELS_QUERY, checked without a database: one statement, reading only, with the columns that the platform needs.

The label source refuses the same again at its own door; here the mistake is found before a run is claimed.
"""

import re
from collections.abc import Iterator

COLUMNS = ("artifact_guid", "label", "file_hash")
_READS = re.compile(r"\s*(select|with|\()", re.IGNORECASE)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
# The dialects that a deployment may speak; a query that one of them understands is a query.
_DIALECTS = ("postgres", "sqlite")
_EXAMPLE = "SELECT artifact_guid, label, file_hash FROM documents"

Complaint = tuple[str, str, str]  # found, expected, remedy


def query_problems(query: str, split_by: str | None) -> Iterator[Complaint]:
    """What is wrong with the query. One that no dialect parses passes if it begins like a SELECT: the database decides."""
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    statements: list[exp.Expr | None] | None = None
    for dialect in _DIALECTS:
        try:
            statements = [*sqlglot.parse(query, dialect=dialect)]
            break
        except SqlglotError:
            continue
    if statements is None:
        if not _READS.match(_COMMENT.sub(" ", query)):
            yield _not_a_select(query)
        return
    found = [statement for statement in statements if statement is not None]
    if len(found) != 1:
        yield f"{len(found)} statements", "one SELECT", "keep one; several tables are joined or united in one SELECT"
        return
    statement = found[0]
    if not isinstance(statement, exp.Query) or statement.find(
        exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Into, exp.Create, exp.Drop, exp.Command
    ):
        yield _not_a_select(query)
        return
    if statement.is_star or any(isinstance(part, exp.Star) for part in statement.selects):
        return  # the database knows which columns a star stands for
    yield from _missing_columns({name.lower() for name in statement.named_selects}, split_by)


def _not_a_select(query: str) -> Complaint:
    first = " ".join(query.split()[:3]) or "nothing"
    return f"a query that begins with {first[:60]!r}", "one SELECT that only reads", f"write for example {_EXAMPLE}"


def _missing_columns(columns: set[str], split_by: str | None) -> Iterator[Complaint]:
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        yield (
            f"a query without the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            f"{', '.join(COLUMNS)} and any further columns",
            f"select {missing[0]}, or rename a column: SELECT … AS {missing[0]}",
        )
    if split_by and split_by.lower() not in columns:
        yield (
            f"a query without the column {split_by} that SPLIT_BY names",
            "the grouping column among the query's columns",
            f"select {split_by} too, or correct SPLIT_BY",
        )
