"""Evaluates the statements of an IAM policy, as far as deploy/cloudformation.yaml uses the language."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from tests.servers.s3_trace import Needed


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def allowing(statements: Iterable[dict[str, Any]], needed: Needed) -> list[dict[str, Any]]:
    """The statements that allow what is needed; none: denied."""
    return [
        statement
        for statement in statements
        if statement["Effect"] == "Allow"
        and needed.action in as_list(statement["Action"])
        and any(fnmatchcase(needed.resource, pattern) for pattern in as_list(statement["Resource"]))
        and _holds(statement.get("Condition", {}), needed)
    ]


def _holds(condition: dict[str, Any], needed: Needed) -> bool:
    patterns = condition.get("StringLike", {}).get("s3:prefix")
    return patterns is None or any(fnmatchcase(needed.prefix, pattern) for pattern in as_list(patterns))


def all_actions(statements: Iterable[dict[str, Any]]) -> set[str]:
    return {action for statement in statements for action in as_list(statement["Action"])}
