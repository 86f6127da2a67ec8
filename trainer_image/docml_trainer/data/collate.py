"""Rows of encoded documents -> one batch of tensors. Padding happens here and nowhere else.

Every sequence feature, also a nested one (boxes, chunks, pages), is padded to the longest of its batch on every axis whose length is
not declared as fixed; lists of one document may differ in length, too. What the user padded already is as long as it is, and stays.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch

from docml_trainer.data.shapes import ARTIFACT_GUID, ATTENTION_MASK, LABELS, Shape, is_image, main_feature, model_shapes
from docml_trainer.errors import DataError

Array = np.ndarray[Any, Any]
Nested = Array | list["Nested"]  # a document's values of a feature; lists where they differ in length
ROW_ID = "row_id"  # an optional integer column of the caller's; comes back as the tensor `row_ids`
ROW_IDS = "row_ids"


class Collator:
    """Collates the rows of one model: `collator([row, …]) -> {"input_ids": int64[batch, length], …, "labels": int64[batch]}`.

    features: of the data set, with the columns of all models. padding: pad value by (unprefixed) feature, 0 where not
    named. prefix: of this model's columns (`docml_contract.names.column_prefix`). pad_to_multiple_of: rounds the token
    axis up, 8 for tensor cores. forward_parameters: of the model; where `attention_mask` is among them and the data
    have none, it is derived from the lengths of the tokens: 1 where one is real, on every axis. fixed_shape: (batch, …) by feature, for exports that hold at one shape
    only; the batch is filled up by repeating its last row, and longer documents are a DataError.

    Integers become int64, floats float32; booleans stay, and so do pixels (`is_image`): uint8. A row's `row_id`, if there is one, comes back in `row_ids`
    (int64[batch]) and is not a feature. `artifact_guid` is left out.
    """

    def __init__(
        self,
        features: datasets.Features,
        padding: Mapping[str, float] | None = None,
        *,
        prefix: str = "",
        pad_to_multiple_of: int | None = None,
        forward_parameters: Sequence[str] | None = None,
        fixed_shape: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.prefix = prefix
        self.shapes = model_shapes(features, prefix)
        if not self.shapes:
            raise DataError(
                f"no column begins with {prefix!r}: found {sorted(features)}; "
                "expected the features of this model (was it in MODEL_NAMES when the data were prepared?)"
            )
        self.padding = {name: (padding or {}).get(name, 0) for name in self.shapes}
        for name, value in self.padding.items():
            _check_padding(name, self.shapes[name], value)
        self.pad_to_multiple_of = pad_to_multiple_of or 1
        self.fixed_shape = {name: tuple(shape) for name, shape in (fixed_shape or {}).items()}
        wants_mask = ATTENTION_MASK in (forward_parameters or ()) and ATTENTION_MASK not in self.shapes
        main = main_feature(self.shapes)
        self.masked_feature = main if wants_mask else None
        self.token_axis = self.shapes[main].rank - 1 if main else None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the tensors for forward(), besides labels: the model's features and a derived attention mask."""
        return (*self.shapes, *((ATTENTION_MASK,) if self.masked_feature else ()))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """DataError if `rows` is empty, or if a document does not fit the fixed shape."""
        if not rows:
            raise DataError("an empty batch; expected at least one row")
        batch: dict[str, torch.Tensor] = {}
        for name, shape in self.shapes.items():
            values, lengths = self._pad(name, shape, rows)
            batch[name] = values
            if name == self.masked_feature:
                batch[ATTENTION_MASK] = torch.from_numpy(lengths)
        for column, name in ((LABELS, LABELS), (ROW_ID, ROW_IDS)):
            if column in rows[0]:
                batch[name] = torch.tensor([int(row[column]) for row in rows], dtype=torch.int64)
        return batch

    def _pad(self, name: str, shape: Shape, rows: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, Array]:
        """The padded feature, and where its values are real (int64 ones and zeros, of the same shape; empty if not wanted)."""
        dtype = _dtype(name, shape)
        values = [_nested(row[self.prefix + name], shape.axes, dtype) for row in rows]
        target = self._target(name, shape, values, rows)
        padded = np.full((len(values), *target), self.padding[name], dtype=dtype)
        real = np.zeros(padded.shape if name == self.masked_feature else 0, dtype=np.int64)
        for index, value in enumerate(values):
            _put(padded[index, ...], value)
            if real.size:
                _mark(real[index, ...], value)
                if 0 in _extent(value):  # an empty document attends to one pad value: attention over nothing is NaN
                    real[index].flat[0] = 1
        missing = self.fixed_shape[name][0] - len(rows) if name in self.fixed_shape else 0
        if missing > 0:
            padded = np.concatenate([padded, np.repeat(padded[-1:], missing, axis=0)])
            real = np.concatenate([real, np.repeat(real[-1:], missing, axis=0)]) if real.size else real
        return torch.from_numpy(padded), real

    def _target(
        self, name: str, shape: Shape, values: Sequence[Nested], rows: Sequence[Mapping[str, Any]]
    ) -> tuple[int, ...]:
        """The length of every axis in this batch."""
        extents = [_extent(value) for value in values]
        for extent, row in zip(extents, rows, strict=True):
            if len(extent) != shape.rank:
                raise DataError(f"feature {name!r}{_of(row)}: found {len(extent)} axes, expected {shape} as declared")
        if name in self.fixed_shape:
            fixed = self.fixed_shape[name]
            self._check_fits(name, fixed, extents, rows)
            return fixed[1:]
        longest = [max(extent[axis] for extent in extents) for axis in range(shape.rank)]
        rounded = None if is_image(name, shape) else self.token_axis
        return tuple(
            -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
            if axis == rounded and shape.axes[axis] is None
            else length
            for axis, length in enumerate(longest)
        )

    def _check_fits(
        self,
        name: str,
        fixed: tuple[int, ...],
        extents: Sequence[tuple[int, ...]],
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        if len(rows) > fixed[0]:
            raise DataError(
                f"a batch of {len(rows)} rows; expected at most {fixed[0]}, the only size that the export is valid for"
            )
        for extent, row in zip(extents, rows, strict=True):
            if any(length > room for length, room in zip(extent, fixed[1:], strict=True)):
                raise DataError(
                    f"feature {name!r}{_of(row)}: shape {extent}, expected at most {fixed[1:]}, "
                    "the only shape that the export is valid for (truncate in encode_data)"
                )


def _nested(value: Any, axes: Sequence[int | None], dtype: type[np.generic]) -> Nested:
    """One array, or a list of such where lists differ in length."""
    try:
        array = value if isinstance(value, np.ndarray) else np.asarray(value, dtype=dtype)
    except ValueError:  # inhomogeneous
        return [_nested(inner, axes[1:], dtype) for inner in value]
    if array.size == 0 and array.ndim < len(axes):  # an empty list does not tell how deep it is
        return array.reshape((*array.shape, *(length or 0 for length in axes[array.ndim :])))
    return array


def _extent(value: Nested) -> tuple[int, ...]:
    """The greatest length on every axis. DataError if some lists are deeper than others."""
    if isinstance(value, np.ndarray):
        return value.shape
    below = {_extent(inner) for inner in value}
    if len({len(extent) for extent in below}) > 1:
        raise DataError(f"found lists of several depths among the values of a document: {sorted(below)}")
    return (len(value), *map(max, zip(*below, strict=True)))


def _put(target: Array, value: Nested) -> None:
    """Copy a document's values to the beginning of every axis."""
    if isinstance(value, np.ndarray):
        target[tuple(slice(length) for length in value.shape)] = value
    else:
        for place, inner in zip(target, value, strict=False):
            _put(place, inner)


def _mark(target: Array, value: Nested) -> None:
    """Write 1 wherever `_put` writes a value."""
    if isinstance(value, np.ndarray):
        target[tuple(slice(length) for length in value.shape)] = 1
    else:
        for place, inner in zip(target, value, strict=False):
            _mark(place, inner)


def _dtype(name: str, shape: Shape) -> type[np.generic]:
    """Of the tensor: torch's embeddings take no small or unsigned integers."""
    if shape.dtype == "bool":
        return np.bool_
    if is_image(name, shape):
        return np.uint8
    return np.int64 if shape.is_integer else np.float32


def _check_padding(name: str, shape: Shape, value: float) -> None:
    """DataError unless the tensor can hold the value as it is."""
    dtype = _dtype(name, shape)
    low, high = {np.uint8: (0, 255), np.bool_: (0, 1), np.int64: (-(2**63), 2**63 - 1)}.get(dtype, (None, None))
    if low is not None and high is not None:
        if not low <= value <= high or value != int(value):
            holds = {np.uint8: "bytes", np.bool_: "booleans"}.get(dtype, "whole numbers")
            raise DataError(f"PADDING of {name!r} is {value}; expected {low} to {high}, since {name} holds {holds}")
    elif math.isnan(value):
        raise DataError(f"PADDING of {name!r} is {value}; expected a number: everything computed with it would be NaN")


def _of(row: Mapping[str, Any]) -> str:
    return f" of artifact {row[ARTIFACT_GUID]}" if ARTIFACT_GUID in row else ""
