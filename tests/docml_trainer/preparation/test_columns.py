"""Strict conversion: what an encoder returns is what its feature declares, or is refused by position."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from docml_trainer.data.datasets import document_values
from docml_trainer.data.pictures import read_pictures
from docml_trainer.data.shapes import IMAGE, Shape
from docml_trainer.preparation import columns as module
from docml_trainer.preparation.columns import BadValue, Column, arrow_type, to_column

IDS = Shape((None,), "int32")
BOXES = Shape((None, 4), "int32")
CHUNKS = Shape((None, None), "int64")
PAGES = Shape((None, None, 4), "int32")
HASHES = Shape((None,), "uint64")


def test_plain_lists_arrays_and_tensors_are_equal() -> None:
    plain = to_column(IDS, [[1, 2, 3], [], [4]])
    arrays = to_column(IDS, [np.array([1, 2, 3]), np.array([], dtype=int), np.array([4])])
    tensors = to_column(IDS, [torch.tensor([1, 2, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([4])])
    for found in (plain, arrays, tensors):
        assert found.to_arrow().to_pylist() == [[1, 2, 3], [], [4]]
        assert found.to_arrow().type == arrow_type(IDS)
        assert found.offsets.tolist() == [0, 3, 3, 4]


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        (BOXES, [[[1, 2, 3, 4], [5, 6, 7, 8]], [], [[9, 9, 9, 9]]]),
        (CHUNKS, [[[1, 2], [3, 4], [5, 6]], [[7]]]),
        (Shape((None, 2, None), "float32"), [[[[1.0], [2.0]]], [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]]),
        (CHUNKS, [[[1, 2], [3]], [[], [4]], [[], []], []]),
        (PAGES, [[[[1, 2, 3, 4]], [[5, 6, 7, 8], [9, 9, 9, 9]]], [[], []], [[[0, 0, 0, 0]]]]),
        (HASHES, [[2**63 - 1], []]),
        (Shape((), "int64"), [1, 2, 3]),
        (Shape((), "float64"), [1, 2.5, 3]),
        (Shape((None,), "bool"), [[True, False], []]),
        (Shape((None,), "float32"), [[1, 2.5], [0.5]]),
        (IDS, []),
        (BOXES, []),
    ],
)
def test_every_shape_survives_arrow(shape: Shape, values: list[Any]) -> None:
    column = to_column(shape, values)
    array = column.to_arrow()
    assert array.type == arrow_type(shape)
    assert array.to_pylist() == values
    assert repr(list(column.documents())) == repr(list(document_values(pa.chunked_array([array]), shape)))


def test_values_of_other_libraries_are_what_they_hold() -> None:
    halves = to_column(Shape((None,), "float32"), [torch.tensor([1.0, 2.5], dtype=torch.bfloat16)])
    assert halves.flat.tolist() == [1.0, 2.5]
    exact = to_column(Shape((None,), "float64"), [torch.tensor([1 + 1e-12], dtype=torch.float64)])
    assert exact.flat.tolist() == [1 + 1e-12]
    assert to_column(IDS, [np.array([1, 2], dtype=object)]).flat.tolist() == [1, 2]
    infinite = to_column(Shape((None,), "float32"), [[float("inf"), 1.0]])
    assert infinite.flat.tolist() == [float("inf"), 1.0]


@pytest.mark.parametrize(
    ("shape", "wrong", "found"),
    [
        (Shape((None,), "float32"), torch.ones(2).to_sparse(), "a tensor that NumPy does not take"),
        (Shape((None,), "float32"), [1e39], "beyond the range of float32"),
        (Shape((None,), "float64"), [1e300], "beyond the range of float32"),
        (Shape((None,), "float16"), [70000.0], "beyond the range of float16"),
        (IDS, "abc", "text"),
        (IDS, ["a"], "text"),
        (IDS, [1, None], "None"),
        (IDS, [1.0, 2.0], "float64 values"),
        (IDS, [True], "bool values"),
        (IDS, np.array([1.5]), "float64 values"),
        (IDS, 7, "0 axes"),
        (IDS, None, "None"),
        (IDS, {"a": 1}, "a dict"),
        (IDS, [[1], [2]], "2 axes"),
        (IDS, [2**40], "1099511627776, expected int32[*]: -2147483648 to 2147483647"),
        (IDS, [2**70], "beyond 64 bits"),
        (Shape((None,), "uint16"), [-1], "-1, expected uint16[*]: 0 to 65535"),
        (Shape((None,), "uint16"), [70_000], "70000"),
        (BOXES, [[1, 2, 3, 4], [1, 2, 3]], "length 3 on axis 1"),
        (CHUNKS, [[1, 2], [1, "a"]], "text"),
        (CHUNKS, [[1, 2], 3], "1 axes"),
        (CHUNKS, [[1, 2], [[3]]], "3 axes"),
        (CHUNKS, [[1, 2], [2**70]], "beyond 64 bits"),
        (IDS, [[1, 2], [1]], "found lists of lengths 1, 2 among the values"),
        (HASHES, [5, 2**64 - 1], "found 18446744073709551615, expected uint64[*]: 0 to 9223372036854775807"),
        (HASHES, np.array([2**63], dtype=np.uint64), "9223372036854775808"),
        (BOXES, [[1, 2, 3]], "length 3 on axis 1"),
        (Shape((3,), "float32"), [1.0, 2.0], "length 2 on axis 0"),
        (Shape((None,), "float32"), [1e300], "beyond the range of float32"),
        (Shape((None,), "bool"), [1, 0], "int64 values"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(shape: Shape, wrong: Any, found: str) -> None:
    right = np.zeros([length or 1 for length in shape.axes], dtype=shape.dtype)
    with pytest.raises(BadValue) as error:
        to_column(shape, [right, wrong, right])
    assert error.value.index == 1
    assert found in str(error.value)
    assert str(shape) in str(error.value)


PIXELS = [np.full((2 + index, 3, 3), index, dtype=np.uint8) for index in range(3)]


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        (Shape((3, None, None), IMAGE), PIXELS),
        (Shape((None, 3, None, None), IMAGE), [PIXELS[:2], [], PIXELS[2:]]),
        (Shape((2, 3, None, None), IMAGE), [PIXELS[:2], PIXELS[1:]]),
        (Shape((None, 3, None, None), IMAGE), []),
        (Shape((3, None, None), IMAGE), []),
    ],
)
def test_pictures_survive_arrow(shape: Shape, values: list[Any]) -> None:
    column = to_column(shape, [read_pictures(value) for value in values])
    array = column.to_arrow()
    assert array.type == arrow_type(shape)
    found = column.documents()
    assert repr(list(found)) == repr(list(document_values(pa.chunked_array([array]), shape)))
    expected = [value if isinstance(value, list) else [value] for value in values]
    for pages, own in zip(expected, found if len(shape.axes) > 3 else [[page] for page in found], strict=True):
        assert [page.transpose(1, 2, 0).tolist() for page in own] == [page.tolist() for page in pages]
    assert [b - a for a, b in pairwise(column.offsets)] == [len(pages) for pages in expected]
    assert column.wide().shape == (sum(map(len, expected)), 32)


@pytest.mark.parametrize(
    ("shape", "wrong", "found"),
    [
        (Shape((3, None, None), IMAGE), 7, "found int 7, expected a picture: "),
        (Shape((3, None, None), IMAGE), [PIXELS[0]], "found list [Picture("),
        (Shape((None, 3, None, None), IMAGE), PIXELS[0], "expected a list of pictures"),
        (Shape((None, 3, None, None), IMAGE), [PIXELS[0], None], "found NoneType None, expected a picture"),
        (Shape((2, 3, None, None), IMAGE), PIXELS, "found 3 pictures, expected 2"),
    ],
)
def test_what_is_no_picture_is_named(shape: Shape, wrong: Any, found: str) -> None:
    right = PIXELS[:2] if len(shape.axes) > 3 else PIXELS[0]
    with pytest.raises(BadValue) as error:
        to_column(shape, [read_pictures(value) for value in (right, wrong)])
    assert error.value.index == 1
    assert found in str(error.value)


def test_pictures_that_no_array_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [read_pictures(value) for value in PIXELS]
    total = sum(len(picture.content) for picture in pictures)
    monkeypatch.setattr(module, "MAX_BYTES", total)
    assert len(to_column(Shape((3, None, None), IMAGE), pictures).flat) == 3
    monkeypatch.setattr(module, "MAX_BYTES", total - 1)
    with pytest.raises(BadValue, match=f"{total} in 3 documents .* return smaller pictures"):
        to_column(Shape((3, None, None), IMAGE), pictures)


def test_wide_values_do_not_depend_on_the_stored_type() -> None:
    narrow: Column = to_column(Shape((None,), "uint8"), [[1, 2]])
    assert narrow.wide().tobytes() == to_column(Shape((None,), "int64"), [[1, 2]]).wide().tobytes()


def test_arrays_and_tensors_of_several_lengths_are_ragged_lists_too() -> None:
    ragged = [[1, 2], [3], []]
    for kind in (np.array, torch.tensor):
        found = to_column(CHUNKS, [[kind(inner, dtype=kind([1]).dtype) for inner in ragged]])
        assert found.to_arrow().to_pylist() == [ragged]
    assert to_column(CHUNKS, [np.array([[1, 2], [3]], dtype=object)]).to_arrow().to_pylist() == [[[1, 2], [3]]]


def test_lengths_are_a_number_for_each_axis_unless_lists_differ() -> None:
    """Data versions hash them: those of documents without ragged lists are what they were before there were any."""
    found = to_column(CHUNKS, [[[1, 2], [3, 4], [5, 6]], [[1, 2], [3]], [], [[]]])
    assert found.document_lengths() == [[3, 2], [2, [2, 1]], [0, 0], [1, 0]]
    assert found.offsets.tolist() == [0, 6, 9, 9, 9]
    assert to_column(BOXES, [[], [[1, 2, 3, 4]]]).document_lengths() == [[0, 4], [1, 4]]
    assert to_column(IDS, [[1, 2], []]).document_lengths() == [[2], [0]]
    assert to_column(Shape((), "int64"), [1, 2]).document_lengths() == [[], []]
