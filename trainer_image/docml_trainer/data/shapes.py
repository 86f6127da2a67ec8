"""What a declared feature means for arrays: number of axes, which of them have a fixed length, and the value type.

The declared features are the contract between the encoder, the saved data and the collator; only numbers and pictures can become
tensors, so anything else is refused here, by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from docml_trainer.errors import DataError

LABELS = "labels"
ARTIFACT_GUID = "artifact_guid"
OWN_COLUMNS = (LABELS, ARTIFACT_GUID)  # what the platform adds to the encoder's features
INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
IMAGE = "image"  # the value type of a picture that is stored as a file; its pixels are uint8

_NUMBERS = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)


@dataclass(frozen=True)
class Shape:
    """One document's value of a feature: `axes` holds each axis' fixed length, or None where documents differ."""

    axes: tuple[int | None, ...]
    dtype: str

    @property
    def rank(self) -> int:
        """The number of axes; 0 for a single number."""
        return len(self.axes)

    @property
    def is_integer(self) -> bool:
        """Whether the values are whole numbers, signed or not; booleans are none."""
        return self.dtype.startswith(("int", "uint"))

    @property
    def is_picture(self) -> bool:
        """Whether it is stored as a compressed file, which is decoded when a row is fetched."""
        return self.dtype == IMAGE

    @property
    def is_sequence(self) -> bool:
        """Whether documents differ in length, so that the collator pads."""
        return None in self.axes

    def __str__(self) -> str:
        """`int32[*, 4]`: as error messages show it."""
        axes = ", ".join("*" if length is None else str(length) for length in self.axes)
        return f"{self.dtype}[{axes}]" if self.axes else self.dtype


def shape_of(name: str, feature: Any) -> Shape:
    """The shape of a declared feature. DataError for anything but numbers, (nested) lists of them, a picture, and a list of pictures."""
    axes: list[int | None] = []
    inner = feature
    while isinstance(inner, datasets.List | datasets.LargeList):
        length = getattr(inner, "length", -1)
        axes.append(None if length == -1 else length)
        inner = inner.feature
    if isinstance(inner, datasets.Array2D | datasets.Array3D | datasets.Array4D | datasets.Array5D):
        axes += inner.shape
        return Shape(tuple(axes), _number(name, inner.dtype, feature))
    if isinstance(inner, datasets.Image) and inner.decode and inner.mode in (None, "RGB") and len(axes) < 2:
        return Shape((*axes, 3, None, None), IMAGE)
    if isinstance(inner, datasets.ClassLabel):
        return Shape(tuple(axes), "int64")
    if isinstance(inner, datasets.Value):
        return Shape(tuple(axes), _number(name, inner.dtype, feature))
    raise DataError(_refusal(name, feature))


def model_shapes(features: datasets.Features, prefix: str) -> dict[str, Shape]:
    """The shapes of one model's features, unprefixed, in their declared order; without labels and GUID.

    Model names have no underscore, so a prefix belongs to one model only.
    """
    return {
        name.removeprefix(prefix): shape_of(name, feature)
        for name, feature in features.items()
        if name not in OWN_COLUMNS and name.startswith(prefix)
    }


def is_image(name: str, shape: Shape) -> bool:
    """Whether a feature holds pixels: pictures, and bytes with at least two axes, which reach the model as bytes.

    A list of small tuples (boxes) is none, and neither is what is named as ids or as a mask, which models look up or multiply with.
    """
    if shape.is_picture:
        return True
    if shape.dtype != "uint8" or name.endswith(("_ids", "_mask")):
        return False
    return shape.rank > 2 or (shape.rank == 2 and shape.axes.count(None) != 1)


def main_feature(shapes: Mapping[str, Shape]) -> str | None:
    """The feature that holds the tokens; None if there is none.

    `input_ids`, else the first list of integers that may have any length on every axis: so no image, no boxes, no mask.
    """
    if INPUT_IDS in shapes and shapes[INPUT_IDS].is_integer and shapes[INPUT_IDS].rank:
        return INPUT_IDS
    for name, shape in shapes.items():
        free = shape.rank > 0 and all(length is None for length in shape.axes)
        if shape.is_integer and free and name != ATTENTION_MASK and not is_image(name, shape):
            return name
    return None


def _number(name: str, dtype: str, feature: Any) -> str:
    normalized = {"float": "float32", "double": "float64", "bool_": "bool"}.get(dtype, dtype)
    if normalized not in _NUMBERS:
        raise DataError(_refusal(name, feature))
    return normalized


def _refusal(name: str, feature: Any) -> str:
    return (
        f"feature {name!r} is declared as {feature}; expected a number, (nested) lists of numbers, Image() or List(Image()), "
        "since every feature becomes a tensor (drop it from get_dataset_features, or encode it as numbers: an image as "
        'Array3D((3, height, width), "uint8"))'
    )
