"""Strict columns: what an encoder returned for a batch of documents -> flat numbers and lengths -> Arrow.

Arrow alone is too obliging: it takes 2.0 for an integer, truncates float arrays, and turns None into a null. Here a value is what
the declared feature says, or a BadValue that says what was found and what was expected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from docml_trainer.data.shapes import Shape

Array = np.ndarray[Any, Any]
_PLAIN_TYPES: dict[str, set[type]] = {"bool": {bool}, "int": {int}, "float": {int, float}}


class BadValue(Exception):
    """One document's value is not what its feature declares."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True)
class Column:
    """A feature of n documents: `flat` holds all values one after the other, `lengths` (int64[n, rank]) every document's axes."""

    shape: Shape
    flat: Array
    lengths: Array

    @property
    def offsets(self) -> Array:
        """Where each document begins in `flat`, and the end: int64[n + 1]."""
        return _offsets(self.lengths.prod(axis=1))

    def to_arrow(self) -> pa.Array:
        """Nested lists of the declared type, all of variable length."""
        array = pa.array(self.flat)
        for axis in reversed(range(self.shape.rank)):
            repeats = self.lengths[:, :axis].prod(axis=1)
            array = pa.ListArray.from_arrays(
                pa.array(_offsets(np.repeat(self.lengths[:, axis], repeats)), pa.int32()), array
            )
        return array

    def wide(self) -> Array:
        """The values as int64 or float64: equal values are equal whatever type stores them."""
        return self.flat.astype(np.float64 if self.shape.dtype.startswith("float") else np.int64, copy=False)


def to_column(shape: Shape, values: Sequence[Any]) -> Column:
    """Convert one feature's values (lists, NumPy arrays or tensors). BadValue names the first one that is wrong."""
    return _plain(shape, values) or _checked(shape, values)


def arrow_type(shape: Shape) -> pa.DataType:
    """The type of `Column.to_arrow()`."""
    inner = {"bool": pa.bool_(), "float16": pa.float16()}.get(shape.dtype) or pa.type_for_alias(shape.dtype)
    for _ in shape.axes:
        inner = pa.list_(inner)
    return inner


def _plain(shape: Shape, values: Sequence[Any]) -> Column | None:
    """The common case, quickly: plain lists of plain numbers within the range. None: look closer."""
    if shape.axes != (None,) or not all(type(value) is list for value in values):
        return None
    if not set(map(type, chain.from_iterable(values))) <= _PLAIN_TYPES[shape.dtype.lstrip("u").rstrip("0123456789")]:
        return None
    try:
        array = pa.array(values, type=arrow_type(shape))
    except (pa.ArrowInvalid, OverflowError):
        return None
    lengths = np.diff(array.offsets.to_numpy()).astype(np.int64)
    return Column(shape, array.values.to_numpy(zero_copy_only=False), lengths.reshape(-1, 1))


def _checked(shape: Shape, values: Sequence[Any]) -> Column:
    arrays = [_one(index, shape, value) for index, value in enumerate(values)]
    lengths = np.array([array.shape for array in arrays], dtype=np.int64).reshape(len(arrays), shape.rank)
    flat = np.concatenate([array.reshape(-1) for array in arrays]) if arrays else np.empty(0, dtype=shape.dtype)
    return Column(shape, flat, lengths)


def _one(index: int, shape: Shape, value: Any) -> Array:
    """One document's value as an array of the declared type."""
    array = _as_array(index, shape, value)
    expected = f"expected {shape}"
    allowed = {"b": "b", "i": "iu", "u": "iu", "f": "fiu"}[np.dtype(shape.dtype).kind]
    if array.size and array.dtype.kind not in allowed:
        raise BadValue(index, f"found {_kind(array)}, {expected}")
    if array.size == 0 and 0 < array.ndim < shape.rank:  # an empty list does not tell how deep it is
        array = array.reshape((0, *(length or 0 for length in shape.axes[1:])))
    if array.ndim != shape.rank:
        raise BadValue(index, f"found {array.ndim} axes {list(array.shape)}, {expected}")
    for axis, (found, declared) in enumerate(zip(array.shape, shape.axes, strict=True)):
        if declared is not None and found != declared:
            raise BadValue(index, f"found length {found} on axis {axis}, {expected}")
    if array.size and shape.is_integer:
        limits = np.iinfo(shape.dtype)
        for extreme in (int(array.min()), int(array.max())):
            if not limits.min <= extreme <= limits.max:
                raise BadValue(index, f"found {extreme}, {expected}: {limits.min} to {limits.max}")
    with np.errstate(over="ignore"):
        converted = array.astype(shape.dtype)
    if shape.dtype.startswith("float") and not np.array_equal(np.isinf(converted), np.isinf(array)):
        raise BadValue(index, f"found a number beyond the range of {shape.dtype}, {expected}")
    return converted


def _as_array(index: int, shape: Shape, value: Any) -> Array:
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError as error:  # inhomogeneous
        raise BadValue(
            index,
            f"found ragged inner lists{_inner_lengths(value)}, expected {shape}: "
            "inner lists of one document need equal lengths (pad them in the encoder)",
        ) from error
    except OverflowError as error:
        raise BadValue(index, f"found an integer beyond 64 bits, expected {shape}") from error


def _inner_lengths(value: Any) -> str:
    try:
        lengths = sorted({len(inner) if hasattr(inner, "__len__") else 0 for inner in value})
    except TypeError:
        return ""
    return f" of lengths {', '.join(map(str, lengths[:5]))}"


def _kind(array: Array) -> str:
    """What the values are, for someone who expected numbers."""
    if array.dtype.kind in "US":
        return "text"
    if array.dtype.kind != "O":
        return f"{array.dtype} values" if array.ndim else f"a {array.dtype}"
    odd = next((item for item in array.reshape(-1) if not isinstance(item, int | float)), 0)
    return "an integer beyond 64 bits" if odd == 0 else "None" if odd is None else f"a {type(odd).__name__}"


def _offsets(lengths: Array) -> Array:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
