"""Rows of encoded documents -> one batch of tensors. Padding happens here and nowhere else.

Every sequence feature, also a nested one (boxes, chunks), is padded to the longest of its batch on every axis whose length is not
declared as fixed. What the user padded already is as long as it is, and stays.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch

from docml_trainer.data.shapes import ARTIFACT_GUID, LABELS, Shape, main_feature, model_shapes
from docml_trainer.errors import DataError

ATTENTION_MASK = "attention_mask"
ROW_ID = "row_id"  # an optional integer column of the caller's; comes back as the tensor `row_ids`
ROW_IDS = "row_ids"


class Collator:
    """Collates the rows of one model: `collator([row, …]) -> {"input_ids": int64[batch, length], …, "labels": int64[batch]}`.

    features: of the data set, with the columns of all models. padding: pad value by (unprefixed) feature, 0 where not
    named. prefix: of this model's columns (`docml_contract.names.column_prefix`). pad_to_multiple_of: rounds the token
    axis up, 8 for tensor cores. forward_parameters: of the model; where `attention_mask` is among them and the data
    have none, it is derived from the lengths. fixed_shape: (batch, …) by feature, for exports that hold at one shape
    only; the batch is filled up by repeating its last row, and longer documents are a DataError.

    Integers become int64, floats float32, booleans stay. A row's `row_id`, if there is one, comes back in `row_ids`
    (int64[batch]) and is no feature. `artifact_guid` is left out.
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
        self.pad_to_multiple_of = pad_to_multiple_of or 1
        self.fixed_shape = {name: tuple(shape) for name, shape in (fixed_shape or {}).items()}
        wants_mask = ATTENTION_MASK in (forward_parameters or ()) and ATTENTION_MASK not in self.shapes
        self.masked_feature = main_feature(self.shapes) if wants_mask else None
        self.token_axis = min((shape.rank for shape in self.shapes.values() if shape.is_sequence), default=0) - 1

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

    def _pad(
        self, name: str, shape: Shape, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
        """The padded feature, and where its values are real (int64 ones and zeros, of the same shape)."""
        arrays = [_array(row[self.prefix + name], shape) for row in rows]
        target = self._target(name, shape, arrays, rows)
        padded = np.full((len(arrays), *target), self.padding[name], dtype=_dtype(shape))
        real = np.zeros(padded.shape, dtype=np.int64) if name == self.masked_feature else np.empty(0, dtype=np.int64)
        for index, array in enumerate(arrays):
            place: tuple[Any, ...] = (index, *(slice(length) for length in array.shape))
            padded[place] = array
            if real.size:
                real[place] = 1
                real[index].flat[0] = 1  # an empty document attends to one pad value: attention over nothing is NaN
        missing = self.fixed_shape[name][0] - len(rows) if name in self.fixed_shape else 0
        if missing > 0:
            padded = np.concatenate([padded, np.repeat(padded[-1:], missing, axis=0)])
            real = np.concatenate([real, np.repeat(real[-1:], missing, axis=0)]) if real.size else real
        return torch.from_numpy(padded), real

    def _target(
        self, name: str, shape: Shape, arrays: Sequence[np.ndarray[Any, Any]], rows: Sequence[Mapping[str, Any]]
    ) -> tuple[int, ...]:
        """The length of every axis in this batch."""
        for array, row in zip(arrays, rows, strict=True):
            if array.ndim != shape.rank:
                raise DataError(
                    f"feature {name!r}{_of(row)}: found {array.ndim} axes, expected {shape} as it is declared"
                )
        if name in self.fixed_shape:
            fixed = self.fixed_shape[name]
            self._check_fits(name, fixed, arrays, rows)
            return fixed[1:]
        longest = [max(array.shape[axis] for array in arrays) for axis in range(shape.rank)]
        return tuple(
            -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
            if axis == self.token_axis and shape.axes[axis] is None
            else length
            for axis, length in enumerate(longest)
        )

    def _check_fits(
        self,
        name: str,
        fixed: tuple[int, ...],
        arrays: Sequence[np.ndarray[Any, Any]],
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        if len(rows) > fixed[0]:
            raise DataError(
                f"a batch of {len(rows)} rows; expected at most {fixed[0]}, the only size the export holds at"
            )
        for array, row in zip(arrays, rows, strict=True):
            if any(length > room for length, room in zip(array.shape, fixed[1:], strict=True)):
                raise DataError(
                    f"feature {name!r}{_of(row)}: shape {array.shape}, expected at most {fixed[1:]}, "
                    "the only shape the export holds at (truncate in encode_data)"
                )


def _array(value: Any, shape: Shape) -> np.ndarray[Any, Any]:
    array = np.asarray(value, dtype=_dtype(shape))
    if array.size == 0 and array.ndim < shape.rank:  # an empty list does not tell how deep it is
        return array.reshape((0, *(length or 0 for length in shape.axes[1:])))
    return array


def _dtype(shape: Shape) -> type[np.generic]:
    """Of the tensor: torch's embeddings take no small or unsigned integers."""
    if shape.dtype == "bool":
        return np.bool_
    return np.int64 if shape.is_integer else np.float32


def _of(row: Mapping[str, Any]) -> str:
    return f" of artifact {row[ARTIFACT_GUID]}" if ARTIFACT_GUID in row else ""
