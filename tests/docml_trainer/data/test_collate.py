"""Padding: to the longest of the batch, on every axis that is not fixed, with the user's pad values."""

import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, List, Value

from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import fetch
from docml_trainer.errors import DataError

OWN = {"labels": ClassLabel(names=["x", "y"]), "artifact_guid": Value("string")}
IDS = Features({"input_ids": List(Value("uint16")), **OWN})


def rows(**columns: list[Any]) -> list[dict[str, Any]]:
    count = len(next(iter(columns.values())))
    own = {
        "labels": [index % 2 for index in range(count)],
        "artifact_guid": [f"guid-{index}" for index in range(count)],
    }
    columns = own | columns
    return [{name: values[index] for name, values in columns.items()} for index in range(count)]


def test_sequences_are_padded_to_the_longest_of_the_batch() -> None:
    batch = Collator(IDS, {"input_ids": 1})(rows(input_ids=[[5, 6, 7], [8]]))
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == [0, 1]


def test_the_attention_mask_is_derived_where_forward_wants_one_and_the_data_have_none() -> None:
    wanted = Collator(IDS, forward_parameters=["input_ids", "attention_mask"])
    batch = wanted(rows(input_ids=[[5, 6, 7], [8], []]))
    assert wanted.feature_names == ("input_ids", "attention_mask")
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]  # the empty one attends to a pad value
    assert batch["attention_mask"].dtype == torch.int64
    assert "attention_mask" not in Collator(IDS, forward_parameters=["input_ids"])(rows(input_ids=[[1]]))


def test_what_the_user_padded_stays_as_it_is() -> None:
    features = Features({"input_ids": List(Value("int32"), length=6), "attention_mask": List(Value("int8")), **OWN})
    found = Collator(features, forward_parameters=["attention_mask"], pad_to_multiple_of=8)(
        rows(input_ids=[[5, 0, 0, 0, 0, 0]] * 2, attention_mask=[[1, 0, 0, 0, 0, 0, 0, 0]] * 2)
    )
    assert found["input_ids"].shape == (2, 6)
    assert found["attention_mask"].tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]] * 2


def test_the_token_axis_is_a_multiple_and_boxes_follow_it() -> None:
    features = Features(
        {
            "input_ids": List(Value("uint16")),
            "boxes": List(List(Value("int32"), length=4)),
            "page": Value("int8"),
            **OWN,
        }
    )
    batch = Collator(features, {"boxes": 9}, pad_to_multiple_of=8)(
        rows(input_ids=[[1, 2, 3], []], boxes=[[[1, 1, 1, 1]] * 3, []], page=[4, 5])
    )
    assert batch["input_ids"].shape == (2, 8)
    assert batch["boxes"].shape == (2, 8, 4)
    assert batch["boxes"][1].unique().tolist() == [9]
    assert batch["page"].tolist() == [4, 5]


def test_chunks_are_padded_in_number_and_in_length() -> None:
    features = Features({"input_ids": List(List(Value("uint16"))), **OWN})
    batch = Collator(features, pad_to_multiple_of=4, forward_parameters=["attention_mask"])(
        rows(input_ids=[[[1, 2, 3]], [[4, 5, 6, 7, 8], [9, 9, 9, 9, 9]]])
    )
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 2, 8)
    assert batch["attention_mask"].sum(dim=(1, 2)).tolist() == [3, 10]


def test_ragged_pages_are_padded_on_every_axis_and_the_mask_says_what_is_real() -> None:
    features = Features(
        {
            "input_ids": List(List(Value("uint16"))),
            "boxes": List(List(List(Value("int32"), length=2))),
            "pixels": datasets.Array4D((None, 1, 2, 2), "uint8"),
            **OWN,
        }
    )
    documents = rows(
        input_ids=[[[1, 2, 3], [4]], [[], [5, 6]], []],
        boxes=[[[[1, 1]] * 3, [[2, 2]]], [[], [[3, 3]] * 2], []],
        pixels=[np.full((2, 1, 2, 2), 7), np.full((1, 1, 2, 2), 8), np.full((3, 1, 2, 2), 9)],
    )
    data = datasets.Dataset.from_list(documents, features=features)
    collate = Collator(features, {"input_ids": 9, "boxes": 5}, forward_parameters=["attention_mask"])
    for batch in (collate(documents), collate(fetch(data, np.arange(3)))):
        assert batch["input_ids"].tolist() == [[[1, 2, 3], [4, 9, 9]], [[9, 9, 9], [5, 6, 9]], [[9] * 3] * 2]
        assert batch["attention_mask"].tolist() == [
            [[1, 1, 1], [1, 0, 0]],
            [[0, 0, 0], [1, 1, 0]],  # an empty page is none
            [[1, 0, 0], [0, 0, 0]],  # an empty document attends to one pad value
        ]
        assert batch["boxes"].shape == (3, 2, 3, 2)
        assert batch["boxes"][0].tolist() == [[[1, 1]] * 3, [[2, 2], [5, 5], [5, 5]]]
        assert batch["boxes"][2].unique().tolist() == [5]
        assert batch["pixels"].shape == (3, 3, 1, 2, 2)
        assert batch["pixels"].dtype == torch.uint8
        assert batch["pixels"][:, :, 0, 0, 0].tolist() == [[7, 7, 0], [8, 0, 0], [9, 9, 9]]


def test_the_token_axis_is_that_of_the_tokens_and_pages_are_not_rounded_up() -> None:
    features = Features(
        {
            "pixels": datasets.Array4D((None, 1, 2, 2), "uint8"),
            "input_ids": List(List(Value("uint16"))),
            "page_numbers": List(Value("int32")),
            **OWN,
        }
    )
    batch = Collator(features, pad_to_multiple_of=8)(
        rows(pixels=[np.zeros((3, 1, 2, 2), dtype=np.uint8)], input_ids=[[[1, 2], [3], [4]]], page_numbers=[[1, 2, 3]])
    )
    assert batch["input_ids"].shape == (1, 3, 8)
    assert batch["pixels"].shape == (1, 3, 1, 2, 2)
    assert batch["page_numbers"].shape == (1, 3)


@pytest.mark.parametrize(
    ("feature", "value", "expected"),
    [
        (Value("int32"), 0.5, "since x holds whole numbers"),
        (Value("int32"), float("nan"), "since x holds whole numbers"),
        (Value("int32"), 2**63, "since x holds whole numbers"),
        (Value("bool"), 2, "expected 0 to 1, since x holds booleans"),
        (Value("float32"), float("nan"), "expected a number"),
    ],
)
def test_a_pad_value_that_the_tensor_does_not_hold_is_refused(feature: Value, value: float, expected: str) -> None:
    with pytest.raises(DataError, match=f"PADDING of 'x' is {value}; .*{expected}"):
        Collator(Features({"x": List(feature)}), {"x": value})
    assert Collator(Features({"x": List(feature)}), {"x": 1.0}).padding == {"x": 1}


def test_bytes_are_padded_with_bytes() -> None:
    features = Features({"pixels": datasets.Array4D((None, 1, 1, 1), "uint8"), **OWN})
    batch = Collator(features, {"pixels": 255})(rows(pixels=[np.zeros((1, 1, 1, 1)), np.zeros((2, 1, 1, 1))]))
    assert batch["pixels"].flatten().tolist() == [0, 255, 0, 0]
    with pytest.raises(DataError, match="PADDING of 'pixels' is -1; expected 0 to 255"):
        Collator(features, {"pixels": -1})


def test_images_and_boxes_never_get_the_attention_mask() -> None:
    features = Features(
        {
            "pixels": datasets.Array3D((3, 4, 4), "uint8"),
            "scan": List(List(Value("uint8"))),
            "boxes": List(List(Value("int32"), length=4)),
            **OWN,
        }
    )
    collate = Collator(features, forward_parameters=["pixels", "attention_mask"])
    assert collate.masked_feature is None
    assert collate.feature_names == ("pixels", "scan", "boxes")


def test_tokens_are_integers_for_an_embedding_even_where_bytes_would_hold_them() -> None:
    features = Features({"input_ids": List(Value("uint8")), "token_type_ids": List(List(Value("uint8"))), **OWN})
    batch = Collator(features)(rows(input_ids=[[1, 2]], token_type_ids=[[[0, 1]]]))
    assert {batch["input_ids"].dtype, batch["token_type_ids"].dtype} == {torch.int64}


def test_a_page_stays_bytes_and_takes_little_time(tmp_path: Path) -> None:
    """3 ms of a processor is far more than copying takes, and less than making Python numbers of the pixels."""
    features = Features({"pixels": datasets.Array3D((3, 224, 224), "uint8"), **OWN})
    pages = np.random.default_rng(0).integers(0, 256, (32, 3, 224, 224), dtype=np.uint8)
    datasets.Dataset.from_dict(
        {"pixels": list(pages), "labels": [0, 1] * 16, "artifact_guid": [str(index) for index in range(32)]},
        features=features,
    ).save_to_disk(str(tmp_path))
    data, collate = datasets.load_from_disk(str(tmp_path)), Collator(features)
    collate(fetch(data, np.arange(2)))
    started = time.process_time()
    batch = collate(fetch(data, np.arange(32)))
    assert (time.process_time() - started) / 32 < 0.003
    assert batch["pixels"].nbytes == pages.nbytes
    assert np.array_equal(batch["pixels"].numpy(), pages)


def test_types_are_what_torch_takes() -> None:
    features = Features(
        {
            "input_ids": List(Value("uint16")),
            "pixels": datasets.Array3D((1, 2, 2), "uint8"),
            "scores": List(Value("float64")),
            "flag": Value("bool"),
            **OWN,
        }
    )
    data = datasets.Dataset.from_list(
        rows(input_ids=[[1], [2, 3]], pixels=[[[[1, 2], [3, 4]]]] * 2, scores=[[0.5], []], flag=[True, False]),
        features=features,
    )
    for form in (None, "numpy", "torch"):
        data.set_format(form)
        batch = Collator(features)([data[0], data[1]])
        kinds = {name: values.dtype for name, values in batch.items()}
        assert kinds == {
            "input_ids": torch.int64,
            "pixels": torch.uint8,
            "scores": torch.float32,
            "flag": torch.bool,
            "labels": torch.int64,
        }
        assert batch["pixels"].shape == (2, 1, 2, 2)


def test_a_model_of_a_comparison_sees_its_own_columns_unprefixed() -> None:
    features = Features({"a_input_ids": List(Value("uint16")), "b_input_ids": List(Value("uint16")), **OWN})
    batch = Collator(features, {"input_ids": 3}, prefix="b_")(rows(a_input_ids=[[1], [2]], b_input_ids=[[7, 7], [8]]))
    assert batch["input_ids"].tolist() == [[7, 7], [8, 3]]
    with pytest.raises(DataError, match="no column begins with 'c_'"):
        Collator(features, prefix="c_")


def test_row_ids_come_back_and_are_no_feature() -> None:
    collator = Collator(IDS)
    batch = collator([row | {"row_id": 40 + index} for index, row in enumerate(rows(input_ids=[[1], [2]]))])
    assert batch["row_ids"].tolist() == [40, 41]
    assert collator.feature_names == ("input_ids",)


def test_a_fixed_shape_fills_the_batch_and_refuses_what_does_not_fit() -> None:
    collator = Collator(
        IDS, forward_parameters=["attention_mask"], fixed_shape={"input_ids": (3, 4), "attention_mask": (3, 4)}
    )
    batch = collator(rows(input_ids=[[1, 2], [3]]))
    assert batch["input_ids"].tolist() == [[1, 2, 0, 0], [3, 0, 0, 0], [3, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert batch["labels"].tolist() == [0, 1]
    with pytest.raises(DataError, match=r"'input_ids' of artifact guid-1: shape \(5,\), expected at most \(4,\)"):
        collator(rows(input_ids=[[1], [1, 2, 3, 4, 5]]))
    with pytest.raises(DataError, match="a batch of 4 rows; expected at most 3"):
        collator(rows(input_ids=[[1]] * 4))


def test_an_empty_batch_and_a_wrong_depth_are_refused() -> None:
    with pytest.raises(DataError, match="an empty batch"):
        Collator(IDS)([])
    with pytest.raises(DataError, match="'input_ids' of artifact guid-0: found 2 axes"):
        Collator(IDS)(rows(input_ids=[np.ones((2, 2))]))
