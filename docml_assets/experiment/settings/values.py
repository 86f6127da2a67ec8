"""How the text of a setting becomes a value: the types that the key table is made of.

Each accepts both the text of settings.ini and the value itself, so that a model's dump can be read back.
"""

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, AllowInfNan, BeforeValidator, StringConstraints

from docml_contract.names import MODEL_NAME
from docml_contract.patterns import is_pattern, pattern_refusal
from resources.store.safe_names import refusal

_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _flag(value: Any) -> Any:
    if isinstance(value, str):
        if value.strip().lower() not in _FLAGS:
            raise ValueError("neither true nor false")
        return _FLAGS[value.strip().lower()]
    return value


def _none(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in ("", "none") else value


def _auto(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() == "auto" else value


def _list(value: Any) -> Any:
    """Comma-separated, also over several lines; a trailing comma is allowed; `none` alone is the empty list."""
    if not isinstance(value, str):
        return value
    items = tuple(item.strip() for item in re.split(r"[,\n]", value))
    items = tuple(item for item in items if item)
    return () if [item.lower() for item in items] == ["none"] else items


def _distinct(value: Any) -> Any:
    items = _list(value)
    if isinstance(items, tuple | list):
        repeated = sorted({item for item in items if items.count(item) > 1})
        if repeated:
            raise ValueError(f"{', '.join(map(str, repeated))} more than once")
    return items


def _file_name(value: str) -> str:
    """A name of one file, or a pattern."""
    reason = refusal(value)
    if not reason and is_pattern(value):
        reason = pattern_refusal(value)
    if reason:
        raise ValueError(reason)
    return value


def _metric_definitions(value: Any) -> Any:
    """`{"name": "regex"}`, or SageMaker's own `[{"Name": …, "Regex": …}]`, as pairs."""
    if isinstance(value, str):
        if value.strip().lower() in ("", "none"):
            return ()
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"no JSON: {error}") from error
    if isinstance(value, dict):
        return tuple(value.items())
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        if any(set(item) != {"Name", "Regex"} for item in value):
            raise ValueError("an item without exactly Name and Regex")
        return tuple((item["Name"], item["Regex"]) for item in value)
    return value


def any_case(*words: str) -> BeforeValidator:
    """Accept the words in any case."""
    folded = {word.lower(): word for word in words}
    return BeforeValidator(lambda value: folded.get(value.strip().lower(), value) if isinstance(value, str) else value)


Flag = Annotated[bool, BeforeValidator(_flag)]
OrNone = BeforeValidator(_none)  # for Annotated[… | None, OrNone]
OrAuto = BeforeValidator(_auto)  # None stands for auto

FileNames = Annotated[tuple[Annotated[str, AfterValidator(_file_name)], ...], BeforeValidator(_distinct)]
ModelName = Annotated[str, StringConstraints(pattern=f"^{MODEL_NAME.pattern}$")]
ModelNames = Annotated[tuple[ModelName, ...], BeforeValidator(_distinct)]
Labels = Annotated[tuple[str, ...], BeforeValidator(_distinct)]
Share = Annotated[float, AllowInfNan(False)]
Shares = Annotated[tuple[Share, Share, Share], BeforeValidator(_list)]
InstanceType = Annotated[str, StringConstraints(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$")]
MetricDefinitions = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_metric_definitions)]
