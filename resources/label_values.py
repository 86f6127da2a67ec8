"""What databases hold, as Arrow columns of plain types: one conversion, whatever driver it came through.

Numbers, booleans, dates and times keep their type. Text stays text (what is not UTF-8 in it becomes U+FFFD, by which reconciliation
refuses a row); UUIDs, decimals and JSON become text, bytes hexadecimal text. A column that mixes types becomes text, value by value.
Everything else is refused with the column's name.
"""

import datetime
import json
import re
import unicodedata
import uuid
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from resources.errors import LabelError

# The columns that every query yields, as text in the end.
TEXT_COLUMNS = ("artifact_guid", "label", "file_hash")
# What exports write where there is no value
NO_VALUE = r"(?i)^(-+|\?+|nan|none|null|nil|n/?a|unknown|undefined)$"
_MICROSECONDS = pa.timestamp("us")
_UTC = pa.timestamp("us", tz="UTC")
_KINDS: dict[type, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    datetime.date: pa.date32(),
    datetime.time: pa.time64("us"),
}
_AS_TEXT = (bytes, bytearray, memoryview, uuid.UUID, Decimal, dict, list, tuple)


def column_from_values(name: str, values: Sequence[Any]) -> pa.Array:
    """One column from a driver's Python values. Raises LabelError for a type that has no plain form."""
    kinds = {_kind(name, value) for value in values if value is not None}
    if len(kinds) == 1:
        (kind,) = kinds
        try:
            if kind != pa.string():
                return pa.array(values, kind)
        except (pa.ArrowInvalid, OverflowError):
            pass  # a number above 64 bits, say
    return pa.array([as_text(value) for value in values], pa.string() if kinds else pa.null())


def _kind(name: str, value: Any) -> pa.DataType:
    """The Arrow type that keeps the value."""
    kind = type(value)
    if kind in _KINDS:
        return _KINDS[kind]
    if isinstance(value, datetime.datetime):
        return _UTC if value.tzinfo else _MICROSECONDS
    if isinstance(value, _AS_TEXT):
        return pa.string()
    for base, known in _KINDS.items():  # subclasses, such as numpy's float64 or an enumeration of strings
        if isinstance(value, base):
            return known
    raise LabelError(
        f"column {name}: its driver gives {kind.__module__}.{kind.__qualname__}, which has no plain form; "
        f"convert it in LABELS_QUERY: CAST({name} AS VARCHAR(255)) AS {name} ({name}::text in PostgreSQL)"
    )


def as_text(value: Any) -> str | None:
    """A value as text: dates and times in ISO 8601, bytes hexadecimal, numbers in full."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() if not value.isascii() else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def join_chunks(name: str, chunks: Sequence[pa.Array]) -> pa.ChunkedArray:
    """One column from its chunks: of their one type, or as text where they differ. Chunks of NULLs fit any type."""
    kinds = {chunk.type for chunk in chunks if not pa.types.is_null(chunk.type)}
    if len(kinds) > 1:
        kind, chunks = pa.string(), [_texts(map(as_text, chunk.to_pylist())) for chunk in chunks]
    else:
        kind = next(iter(kinds), pa.string())
    return plain_column(
        name, pa.chunked_array([chunk.cast(kind) if pa.types.is_null(chunk.type) else chunk for chunk in chunks], kind)
    )


def plain_column(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A driver's Arrow column with plain types only."""
    kind = column.type
    if isinstance(kind, pa.UuidType):
        return _one_chunk(_texts(map(as_text, column.to_pylist())))
    if isinstance(kind, pa.OpaqueType) and not _is_text(kind.storage_type):
        raise LabelError(
            f"column {name}: its type {kind.type_name} has no plain form; convert it in LABELS_QUERY: {name}::text AS {name}"
        )
    if isinstance(kind, pa.BaseExtensionType):
        return plain_column(name, pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _one_chunk(_texts(map(as_text, column.to_pylist())))
    if not _is_text(kind):
        return column
    raw = pc.cast(column, pa.large_binary())
    try:
        return pc.cast(raw, pa.string())
    except pa.ArrowInvalid:
        values = raw.to_pylist()
        return _one_chunk(_texts(value.decode(errors="replace") if value is not None else None for value in values))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _texts(values: Iterable[str | None]) -> pa.Array:
    return pa.array(list(values), pa.string())


def _one_chunk(array: pa.Array) -> pa.ChunkedArray:
    return pa.chunked_array([array])


def column_named(names: Sequence[str], wanted: str) -> str | None:
    """The column that `wanted` names: itself, else the only one that differs in case; None if there is none or several."""
    if wanted in names:
        return wanted
    found = [name for name in names if name.lower() == wanted.lower()]
    return found[0] if len(found) == 1 else None


def look_alikes(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of labels that look the same: equal after NFC, trimming, single blanks, case folding, and as numbers (1 and 1.0).
    Sorted, each and all."""
    groups: dict[str, list[str]] = {}
    for label in sorted(set(labels)):
        groups.setdefault(_looks(label), []).append(label)
    return sorted(tuple(group) for group in groups.values() if len(group) > 1)


def missing_values(labels: Iterable[str]) -> list[str]:
    """Labels that may say that there is none, as an export writes it."""
    return sorted(label for label in labels if re.match(NO_VALUE, label.strip()))


def idle_names(names: Iterable[str], labels: Iterable[str]) -> dict[str, str | None]:
    """Those of the names that no label is, each with the label that was probably meant."""
    known = set(labels)
    by_looks = {_looks(label): label for label in sorted(known)}
    found: dict[str, str | None] = {}
    for name in names:
        if name not in known:
            near = get_close_matches(_looks(name), by_looks, n=1, cutoff=0.8)
            found[name] = by_looks[near[0]] if near else None
    return found


def describe_idle(idle: Mapping[str, str | None]) -> str:
    """What there is to say of `idle_names`."""
    return ", ".join(f"{name!r}" + (f" (did you mean {meant!r}?)" if meant else "") for name, meant in idle.items())


def _looks(label: str) -> str:
    """What a label has in common with those that look the same."""
    return re.sub(r"^(\d+)\.0+$", r"\1", " ".join(unicodedata.normalize("NFC", label).split()).casefold())


def describe_look_alikes(groups: Sequence[tuple[str, ...]]) -> str:
    """Which labels look alike, and what to do about it."""
    shown = "; ".join(" = ".join(map(repr, group)) for group in groups[:5]) + ("; …" if len(groups) > 5 else "")
    return (
        f"{len(groups)} {'group of labels looks' if len(groups) == 1 else 'groups of labels look'} the same but for case, blanks, or the way accents or numbers are written: {shown}; they are "
        "different classes: make them one in LABELS_QUERY (with lower(trim(label)), for example), or name those to leave out in "
        "IGNORED_LABELS"
    )
