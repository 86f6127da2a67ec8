"""The beginning of a document's text, for people who read a report."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from docml_assets.steps.work import Work
from docml_assets.tables import read_parquet
from docml_contract.names import RECONCILED_TABLE
from resources.errors import ResourceError

LENGTH = 400
SHORTEST = 20  # characters of a JSON string that counts as text rather than as a name or an id


def excerpts(work: Work) -> Callable[[str], str]:
    """GUID -> the beginning of the first of MODEL_INPUT_FILES that holds text; empty where none does."""
    table = read_parquet(work.store.get(f"{work.place.reconciliation}/{RECONCILED_TABLE}"))
    key_of = {
        (row["artifact_guid"], row["file"]): row["key"]
        for row in table.select(["artifact_guid", "file", "key"]).to_pylist()
    }

    def excerpt(guid: str) -> str:
        for name in work.settings.model_input_files:
            key = key_of.get((guid, name))
            if key is None:
                continue
            try:
                text = text_of(work.store.get(key))
            except ResourceError:
                continue
            if text:
                return text[:LENGTH]
        return ""

    return excerpt


def text_of(content: bytes) -> str:
    """The text of a file: its long strings if it is JSON, itself if it is text, nothing if it is neither."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return ""
    try:
        parts = _strings(json.loads(text))
    except json.JSONDecodeError:
        return " ".join(text.split())
    return " ".join(" ".join(part for part in parts if len(part) >= SHORTEST and " " in part).split())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
