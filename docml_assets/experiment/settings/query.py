"""LABELS_QUERY, checked without a database: one statement that only reads, with the columns that the platform needs."""

from collections.abc import Iterator

import sqlglot
from sqlglot import exp

from resources.errors import RefusedQuery
from resources.queries import check_query

COLUMNS = ("artifact_guid", "label", "file_hash")
# What deployments' databases speak. Settings do not know which, so a query is right if one of them understands it; the label
# source checks it again in its own dialect.
_DIALECTS = ("postgres", "sqlite", "mysql", "tsql")

Complaint = tuple[str, str, str]  # found, expected, remedy


def query_problems(query: str, split_by: str | None) -> Iterator[Complaint]:
    """What is wrong with the query."""
    refusals = []
    for dialect in _DIALECTS:
        try:
            checked = check_query(query, dialect)
        except RefusedQuery as refusal:
            refusals.append(str(refusal))
            continue
        yield from _missing_columns(checked, dialect, split_by)
        return
    found, _, expected = refusals[0].partition("; expected ")
    yield (
        found,
        expected or "one SELECT that only reads",
        "write for example SELECT artifact_guid, label, file_hash FROM documents",
    )


def _missing_columns(query: str, dialect: str, split_by: str | None) -> Iterator[Complaint]:
    statement = sqlglot.parse_one(query, read=dialect).unnest()
    assert isinstance(statement, exp.Query)
    if statement.is_star or any(isinstance(part, exp.Star) for part in statement.selects):
        return  # the database knows which columns a star stands for
    columns = {name.lower() for name in statement.named_selects}
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
