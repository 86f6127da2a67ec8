"""Checks a request as the service does: lengths, patterns, enums, ranges and required members of botocore's model.

botocore itself checks required members and types on the client, and nothing else.
"""

import re
from collections.abc import Iterator
from typing import Any

from botocore.model import Shape
from botocore.session import get_session

from tests.servers.sagemaker.errors import ServiceError

_MODEL = get_session().get_service_model("sagemaker")


def validate_request(operation: str, request: dict[str, Any]) -> None:
    """Raise the ValidationException that the service would answer."""
    shape = _MODEL.operation_model(operation).input_shape
    problems = list(_problems(shape, request, "")) if shape else []
    if problems:
        count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''} detected"
        raise ServiceError("ValidationException", f"{count}: {'; '.join(problems)}")


def _problems(shape: Shape, value: Any, path: str) -> Iterator[str]:
    kind, limits = shape.type_name, shape.metadata

    def complaint(constraint: str) -> str:
        return f"Value '{str(value)[:80]}' at '{path}' failed to satisfy constraint: {constraint}"

    if kind == "structure":
        for name in shape.required_members:
            if name not in value:
                yield f"Value null at '{_join(path, name)}' failed to satisfy constraint: Member must not be null"
        for name, member in value.items():
            if name not in shape.members:
                yield f"Unknown parameter '{_join(path, name)}'"
            else:
                yield from _problems(shape.members[name], member, _join(path, name))
        return
    if kind in ("list", "map", "string"):
        if len(value) > limits.get("max", len(value)):
            yield complaint(f"Member must have length less than or equal to {limits['max']}")
        if len(value) < limits.get("min", 0):
            yield complaint(f"Member must have length greater than or equal to {limits['min']}")
    if kind == "list":
        for index, item in enumerate(value, 1):
            yield from _problems(shape.member, item, f"{path}.{index}.member")
    elif kind == "map":
        for key, item in value.items():
            yield from _problems(shape.key, key, f"{path}.key")
            yield from _problems(shape.value, item, f"{path}.{key}.member")
    elif kind == "string":
        pattern = limits.get("pattern")
        if pattern and "\\p{" not in pattern and not re.fullmatch(pattern, value, re.DOTALL):
            yield complaint(f"Member must satisfy regular expression pattern: {pattern}")
        if getattr(shape, "enum", None) and value not in shape.enum:
            yield complaint(f"Member must satisfy enum value set: [{', '.join(shape.enum)}]")
    elif kind in ("integer", "long", "float", "double"):
        if value > limits.get("max", value):
            yield complaint(f"Member must have value less than or equal to {limits['max']}")
        if value < limits.get("min", value):
            yield complaint(f"Member must have value greater than or equal to {limits['min']}")


def _join(path: str, name: str) -> str:
    member = name[0].lower() + name[1:]
    return f"{path}.{member}" if path else member
