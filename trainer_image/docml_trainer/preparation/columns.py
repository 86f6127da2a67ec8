"""Strict columns: what an encoder returned for a batch of documents -> flat numbers and lengths -> Arrow.

Arrow alone is too obliging: it takes 2.0 for an integer, truncates float arrays, and turns None into a null. Here a value is what
the declared feature says, or a BadValue that says what was found and what was expected.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa

from docml_trainer.data.pictures import EXPECTED, Picture, decode_picture
from docml_trainer.data.shapes import IMAGE, Shape
from docml_trainer.functions import describe

Array = np.ndarray[Any, Any]
_LARGEST_FLOAT = float(np.finfo(np.float32).max)  # of a tensor
PICTURE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # of datasets.Image
MAX_BYTES = 2_000_000_000  # of the pictures of a batch of documents: an Arrow array of bytes holds 2^31 - 1
_PLAIN_TYPES: dict[str, set[type]] = {"bool": {bool}, "int": {int}, "float": {int, float}}


class BadValue(Exception):
    """One document's value is not what its feature declares."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True)
class Column:
    """A feature of n documents: `flat` holds all values one after the other.

    `lengths` holds, by axis, the length of every list: int64[n] for the documents themselves, then one number for each of their
    lists, and so on. Lists of one document may differ in length.
    """

    shape: Shape
    flat: Array
    lengths: tuple[Array, ...]

    @property
    def offsets(self) -> Array:
        """Where each document begins in `flat`, and the end: int64[n + 1]."""
        if not self.lengths:
            return np.arange(len(self.flat) + 1)
        found = np.arange(len(self.lengths[0]) + 1)
        for lengths in self.lengths:
            found = _offsets(lengths)[found]
        return found

    def document_lengths(self) -> list[list[Any]]:
        """By document, the length on every axis; where a document's lists differ, the lengths of all of them."""
        described: list[list[Any]] = [[] for _ in range(len(self.lengths[0]) if self.lengths else len(self.flat))]
        bounds = np.arange(len(described) + 1)
        for lengths, declared in zip(self.lengths, self.shape.axes, strict=not self.shape.is_picture):
            for document, (start, end) in zip(described, pairwise(bounds), strict=True):
                own = lengths[start:end]
                equal = not own.size or (own == own[0]).all()
                document.append((int(own[0]) if own.size else declared or 0) if equal else own.tolist())
            bounds = _offsets(lengths)[bounds]
        return described

    def documents(self) -> Sequence[Any]:
        """The values document by document, as they come back from a saved row: a number, an array, or a list of arrays where inner
        lists may differ in length.
        """
        if not self.lengths:
            return cast("Sequence[Any]", self.flat)
        return _split(self.flat, self.lengths, self.shape.axes)

    def to_arrow(self) -> pa.Array:
        """Nested lists of the declared type, all of variable length."""
        array = self._flat_to_arrow()
        for lengths in reversed(self.lengths):
            array = pa.ListArray.from_arrays(pa.array(_offsets(lengths), pa.int32()), array)
        return array

    def _flat_to_arrow(self) -> pa.Array:
        return pa.array(self.flat)

    def wide(self) -> Array:
        """The values as int64 or float64: equal values are equal whatever type stores them."""
        return self.flat.astype(np.float64 if self.shape.dtype.startswith("float") else np.int64, copy=False)


class PictureColumn(Column):
    """Pictures: `flat` holds a Picture each, so that `lengths` has an axis at most, that of a list of pictures."""

    def documents(self) -> Sequence[Any]:
        """The pixels document by document: uint8[3, height, width], or a list of such."""
        decoded = [decode_picture(picture.content) for picture in self.flat]
        return [decoded[start:end] for start, end in pairwise(self.offsets.tolist())] if self.lengths else decoded

    def _flat_to_arrow(self) -> pa.Array:
        contents = pa.array([picture.content for picture in self.flat], pa.binary())
        return pa.StructArray.from_arrays([contents, pa.nulls(len(contents), pa.string())], fields=[*PICTURE_TYPE])

    def wide(self) -> Array:
        """uint8[pictures, 32], the digests of their pixels: equal pictures are equal whatever file holds them."""
        return np.array([[*picture.digest] for picture in self.flat], dtype=np.uint8).reshape(-1, 32)


def to_column(shape: Shape, values: Sequence[Any]) -> Column:
    """Convert one feature's values (lists, NumPy arrays, tensors; Pictures). BadValue names the first one that is wrong."""
    if shape.is_picture:
        return _pictures(shape, values)
    return _plain(shape, values) or _checked(shape, values)


def arrow_type(shape: Shape) -> pa.DataType:
    """The type of `Column.to_arrow()`."""
    own = {"bool": pa.bool_(), "float16": pa.float16(), IMAGE: PICTURE_TYPE}
    inner = own.get(shape.dtype) or pa.type_for_alias(shape.dtype)
    for _ in shape.axes[:-3] if shape.is_picture else shape.axes:
        inner = pa.list_(inner)
    return inner


def _plain(shape: Shape, values: Sequence[Any]) -> Column | None:
    """The common case, quickly: plain lists of plain numbers within the range. None: look closer."""
    if shape.axes != (None,) or shape.dtype == "uint64" or not all(type(value) is list for value in values):
        return None
    if not set(map(type, chain.from_iterable(values))) <= _PLAIN_TYPES[shape.dtype.lstrip("u").rstrip("0123456789")]:
        return None
    try:
        array = pa.array(values, type=arrow_type(shape))
    except (pa.ArrowInvalid, OverflowError):
        return None
    lengths = np.diff(array.offsets.to_numpy()).astype(np.int64)
    flat = array.values.to_numpy(zero_copy_only=False)
    if flat.dtype.kind == "f" and flat.size and not np.abs(flat).max() <= _LARGEST_FLOAT:
        return None  # infinite, or would be; NaN too
    return Column(shape, flat, (lengths,))


def _pictures(shape: Shape, values: Sequence[Any]) -> Column:
    pages = values if len(shape.axes) > 3 else [[value] for value in values]
    for index, own in enumerate(pages):
        if not isinstance(own, list):
            raise BadValue(index, f"found {_found(own)}, expected a list of pictures")
        if wrong := [page for page in own if not isinstance(page, Picture)]:
            raise BadValue(index, f"found {_found(wrong[0])}, expected {EXPECTED}")
        if pages is values and shape.axes[0] not in (None, len(own)):
            raise BadValue(index, f"found {len(own)} pictures, expected {shape.axes[0]}")
    sizes = [sum(len(page.content) for page in own) for own in pages]
    if sum(sizes) > MAX_BYTES:
        raise BadValue(
            int(np.argmax(sizes)),
            f"found pictures of {max(sizes):,} bytes, and {sum(sizes):,} in {len(pages)} documents that are encoded together, "
            f"expected at most {MAX_BYTES:,}: return smaller pictures",
        )
    flat = np.empty(sum(map(len, pages)), dtype=object)
    flat[:] = [*chain.from_iterable(pages)]
    return PictureColumn(shape, flat, (np.array([*map(len, pages)], dtype=np.int64),) if pages is values else ())


def _found(value: Any) -> str:
    return f"a {value.dtype} array {list(value.shape)}" if isinstance(value, np.ndarray) else describe(value)


def _checked(shape: Shape, values: Sequence[Any]) -> Column:
    documents = [_Document(index, shape).convert(value) for index, value in enumerate(values)]
    flat = _joined([flat for flat, _ in documents], shape.dtype)
    lengths = (_joined([lengths[axis] for _, lengths in documents], np.int64) for axis in range(shape.rank))
    return Column(shape, flat, tuple(lengths))


@dataclass(frozen=True)
class _Document:
    """Converts one document's value, and says in a BadValue what is wrong with it."""

    index: int
    shape: Shape

    def convert(self, value: Any, axis: int = 0) -> tuple[Array, list[Array]]:
        """The values of the declared type, flat, and the lengths on every axis from `axis` on, as `Column.lengths` has them."""
        axes = self.shape.axes[axis:]
        array = self._as_array(value, ragged=len(axes) > 1)
        if array is None or _is_ragged(array, len(axes)):
            self._check_length(axis, len(value))
            parts = [self.convert(inner, axis + 1) for inner in value]
            flat = _joined([flat for flat, _ in parts], self.shape.dtype)
            below = [_joined([lengths[i] for _, lengths in parts], np.int64) for i in range(len(axes) - 1)]
            return flat, [np.array([len(value)], dtype=np.int64), *below]
        if array.size == 0 and 0 < array.ndim < len(axes):  # an empty list does not tell how deep it is
            array = array.reshape((0, *(length or 0 for length in axes[1:])))
        self._check(array, axis)
        sizes = array.shape
        lengths = [np.full(math.prod(sizes[:i]), size, dtype=np.int64) for i, size in enumerate(sizes)]
        return self._cast(array).reshape(-1), lengths

    def _as_array(self, value: Any, *, ragged: bool) -> Array | None:
        """None where lists of one axis differ in length and may do so."""
        if hasattr(value, "detach"):  # a torch tensor
            value = self._of_tensor(value)
        elif getattr(getattr(value, "dtype", None), "kind", None) == "O" and hasattr(value, "tolist"):
            value = value.tolist()  # of NumPy or pandas: what its objects are, their own types say
        try:
            array = np.asarray(value)
            mixed = (
                array.dtype == np.float64 and self.shape.dtype == "uint64"
            )  # what NumPy makes of small and large integers
            return _as_integers(value, array) if mixed else array
        except ValueError as error:  # inhomogeneous
            if ragged and hasattr(value, "__len__"):
                return None
            raise self._wrong(f"found lists{_inner_lengths(value)} among the values") from error
        except OverflowError as error:
            raise self._wrong("found an integer beyond 64 bits") from error

    def _of_tensor(self, tensor: Any) -> Array:
        try:
            tensor = tensor.detach().cpu()
            found: Array = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
        except (
            TypeError,
            RuntimeError,
        ) as error:  # sparse, quantized, without data (NotImplementedError is a RuntimeError)
            raise self._wrong(f"found a tensor that NumPy does not take ({str(error).splitlines()[0]})") from error
        return found

    def _check(self, array: Array, axis: int) -> None:
        allowed = {"b": "b", "i": "iu", "u": "iu", "f": "fiu"}[np.dtype(self.shape.dtype).kind]
        if array.size and array.dtype.kind not in allowed:
            raise self._wrong(f"found {_kind(array)}")
        if array.ndim != self.shape.rank - axis:
            raise self._wrong(f"found {axis + array.ndim} axes {list(array.shape)}")
        for position, length in enumerate(array.shape, start=axis):
            self._check_length(position, length)
        if array.size and self.shape.is_integer:
            # A tensor holds int64.
            low, high = np.iinfo(self.shape.dtype).min, min(np.iinfo(self.shape.dtype).max, np.iinfo("int64").max)
            for extreme in (int(array.min()), int(array.max())):
                if not low <= extreme <= high:
                    raise self._wrong(f"found {extreme}", f": {low} to {high}")

    def _check_length(self, axis: int, found: int) -> None:
        declared = self.shape.axes[axis]
        if declared is not None and found != declared:
            raise self._wrong(f"found length {found} on axis {axis}")

    def _cast(self, array: Array) -> Array:
        with np.errstate(over="ignore"):
            converted = array.astype(self.shape.dtype)
            in_tensor = converted.astype(np.float32) if self.shape.dtype == "float64" else converted
        if self.shape.dtype.startswith("float") and not np.array_equal(np.isinf(in_tensor), np.isinf(array)):
            raise self._wrong(f"found a number beyond the range of {in_tensor.dtype}, as which it reaches the model")
        return converted

    def _wrong(self, found: str, limits: str = "") -> BadValue:
        return BadValue(self.index, f"{found}, expected {self.shape}{limits}")


def _split(flat: Array, lengths: Sequence[Array], axes: Sequence[int | None]) -> list[Any]:
    below = axes[1:]
    inner = _split(flat, lengths[1:], below) if None in below else flat.reshape(-1, *below)
    return [inner[start:end] for start, end in pairwise(_offsets(lengths[0]).tolist())]


def _as_integers(value: Any, floats: Array) -> Array:
    """Integers that NumPy has made floats, which cannot hold them; `floats` where these are what was given."""
    exact = np.asarray(value, dtype=object)
    whole = exact.size and all(type(number) is int for number in exact.flat)
    return exact.astype(np.uint64 if min(exact.flat) >= 0 else np.int64) if whole else floats


def _is_ragged(array: Array, rank: int) -> bool:
    """Whether NumPy stopped above the innermost axis: at lists of several lengths, or at empty ones."""
    stopped = 0 < array.ndim < rank and len(array) > 0
    return stopped and (array.dtype == object or array.size == 0)


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


def _joined(parts: Sequence[Array], dtype: Any) -> Array:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


def _offsets(lengths: Array) -> Array:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
