"""How it behaves."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import (
    ahead,
    document_lengths,
    evaluation_batches,
    fetch,
    global_batches,
    leaves,
    load_split,
    longest_axes,
    micro_batches,
)
from docml_trainer.errors import DataError
from tests.docml_trainer.trainings import split

CHUNKS = [[[1, 2, 3], [4, 5, 6]], [[7, 8]], [[1, 1, 1, 1]] * 3]


def chunked() -> datasets.Dataset:
    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.List(datasets.Value("uint16"))),
            "pixels": datasets.Array2D((2, 2), "float32"),
            "labels": datasets.ClassLabel(names=["a", "b"]),
        }
    )
    columns = {"input_ids": CHUNKS, "pixels": np.zeros((3, 2, 2), dtype=np.float32), "labels": [0, 1, 0]}
    return datasets.Dataset.from_dict(columns, features=features)


def test_lengths_count_the_values_of_nested_lists() -> None:
    assert document_lengths(chunked(), "").tolist() == [6, 2, 12]
    assert document_lengths(chunked().select([2, 0]), "").tolist() == [12, 6], "also of a selection"
    words = split(20, 1)
    assert document_lengths(words, "").tolist() == [len(ids) for ids in words["input_ids"]]


def test_documents_without_a_sequence_have_length_one() -> None:
    assert document_lengths(chunked().select_columns(["labels"]), "").tolist() == [1, 1, 1]


def test_longest_axes() -> None:
    assert longest_axes(chunked(), "input_ids", (None, None)) == [3, 4]
    assert longest_axes(chunked(), "pixels", (2, 2)) == [2, 2]


def test_rows_carry_their_number() -> None:
    rows = fetch(chunked(), np.array([2, 0]))
    assert [row["row_id"] for row in rows] == [2, 0]
    assert [page.tolist() for page in rows[1]["input_ids"]] == CHUNKS[0]


def test_values_are_arrays_of_the_stored_type(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("uint16")),
            "pages": datasets.List(datasets.List(datasets.List(datasets.Value("int32"), length=2))),
            "pixels": datasets.Array4D((None, 1, 2, 3), "uint8"),
            "pictures": datasets.List(datasets.Array3D((1, 2, 3), "uint8")),
            "flags": datasets.List(datasets.Value("bool"), length=2),
            "score": datasets.Value("float32"),
            "labels": datasets.ClassLabel(names=["a", "b"]),
            "artifact_guid": datasets.Value("string"),
        }
    )
    columns = {
        "input_ids": [[1, 2, 3], [], [4]],
        "pages": [[[[1, 2]], []], [], [[[3, 4], [5, 6]]]],
        "pixels": [np.arange(12).reshape(2, 1, 2, 3), np.zeros((1, 1, 2, 3)), np.ones((3, 1, 2, 3))],
        "pictures": [np.arange(12).reshape(2, 1, 2, 3).tolist(), [], np.ones((3, 1, 2, 3)).tolist()],
        "flags": [[True, False], [False, False], [True, True]],
        "score": [0.5, 1.5, 2.5],
        "labels": [0, 1, 0],
        "artifact_guid": ["x", "y", "z"],
    }
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path))
    saved = datasets.load_from_disk(str(tmp_path))
    for data, order in ((saved, [2, 0, 1]), (saved.select([1, 0]), [1, 0])):
        rows = fetch(data, np.array(order))
        for row, position in zip(rows, {3: [2, 0, 1], 2: [0, 1]}[len(order)], strict=True):
            assert row["input_ids"].dtype == np.uint16
            assert row["input_ids"].tolist() == columns["input_ids"][position]
            assert [page.tolist() for page in row["pages"]] == columns["pages"][position]
            assert [page.shape[1] for page in row["pages"]] == [2] * len(columns["pages"][position])
            assert row["pixels"].dtype == np.uint8
            assert np.array_equal(row["pixels"], columns["pixels"][position])
            assert row["pictures"].shape == (len(columns["pictures"][position]), 1, 2, 3)
            assert row["pictures"].tolist() == columns["pictures"][position]
            assert row["flags"].tolist() == columns["flags"][position]
            assert (row["score"], row["labels"]) == (columns["score"][position], columns["labels"][position])
            assert row["artifact_guid"] == columns["artifact_guid"][position]


def test_pictures_come_as_pixels(tmp_path: Path) -> None:
    """Pages of several sizes, as `datasets` itself writes them."""
    features = datasets.Features({"pages": datasets.List(datasets.Image()), "cover": datasets.Image()})
    pages = [np.full((size, 3, 3), size, dtype=np.uint8) for size in (2, 5, 4)]
    columns = {"pages": [pages[:2], [], pages[2:]], "cover": pages}
    images = [Image.fromarray(page) for page in pages]
    written = {"pages": [images[:2], [], images[2:]], "cover": images}
    datasets.Dataset.from_dict(written, features=features).save_to_disk(str(tmp_path))
    data = datasets.load_from_disk(str(tmp_path))
    for chosen, order in ((data, [2, 0, 1]), (data.select([2, 0, 1]), [0, 1, 2])):
        rows = fetch(chosen, np.array(order))
        for row, position in zip(rows, [2, 0, 1], strict=True):
            own = [page.transpose(1, 2, 0).tolist() for page in row["pages"]]
            assert own == [page.tolist() for page in columns["pages"][position]]
            assert np.array_equal(row["cover"], columns["cover"][position].transpose(2, 0, 1))
    assert longest_axes(data, "pages", (None, 3, None, None)) == [2, 3, 5, 3]
    assert longest_axes(data, "cover", (3, None, None)) == [3, 5, 3]
    assert longest_axes(data.select([1]), "pages", (None, 3, None, None)) == [0, 3, 0, 0]
    assert document_lengths(data, "").tolist() == [1, 1, 1]
    batch = Collator(features, {"cover": 9})(rows)
    assert batch["pages"].shape == (3, 2, 3, 5, 3)
    assert batch["pages"].sum(dim=(1, 2, 3, 4)).tolist() == [4 * 36, 2 * 18 + 5 * 45, 0]
    assert batch["cover"].dtype == torch.uint8
    assert batch["cover"][1, :, 2:].unique().tolist() == [9], "padded to the largest of the batch"


def test_leaves_are_all_numbers_in_order() -> None:
    assert leaves([np.array([1, 2]), [np.array([3])], np.array([])]).tolist() == [1, 2, 3]
    assert leaves(np.arange(6).reshape(2, 3)).tolist() == list(range(6))


def test_a_model_reads_its_own_columns(tmp_path: Path) -> None:
    split(5, 1, ("bag_", "other_")).save_to_disk(str(tmp_path / "train"))
    assert sorted(load_split(tmp_path / "train", "bag_").features) == ["bag_input_ids", "labels"]


def test_what_is_no_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set; expected the split"):
        load_split(tmp_path / "train", "")
    split(5, 1).select([]).save_to_disk(str(tmp_path / "empty"))
    with pytest.raises(
        DataError, match=r"the split has no documents; expected at least one \(raise its share in SPLIT\)"
    ):
        load_split(tmp_path / "empty", "")
    split(5, 1).remove_columns("labels").save_to_disk(str(tmp_path / "bare"))
    with pytest.raises(DataError, match="expected labels as a ClassLabel"):
        load_split(tmp_path / "bare", "")


@pytest.fixture(scope="module")
def lengths() -> np.ndarray:
    return np.random.default_rng(0).integers(5, 500, 1003)


def test_every_document_once_an_epoch_in_another_order(lengths: np.ndarray) -> None:
    first, second = (global_batches(lengths, 16, 13, epoch) for epoch in (1, 2))
    for batches in (first, second):
        assert sorted(np.concatenate(batches)) == list(range(1003))
        assert [len(batch) for batch in batches] == [16] * 62 + [11]
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    again = global_batches(lengths, 16, 13, 1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_batches_pad_little_and_long_ones_come_at_any_time(lengths: np.ndarray) -> None:
    batches = global_batches(lengths, 16, 13, 1)
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    assert padded < 1.1 * lengths.sum()
    longest = [int(lengths[batch].max()) for batch in batches]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


@pytest.mark.parametrize("documents", [1, 7, 16])
def test_fewer_documents_than_a_batch(documents: int) -> None:
    batches = global_batches(np.ones(documents, dtype=np.int64), 16, 13, 1)
    assert [sorted(batch) for batch in batches] == [list(range(documents))]


@pytest.mark.parametrize(
    ("documents", "size", "expected"), [(33, 16, [16, 9, 8]), (17, 16, [9, 8]), (3, 2, [2, 1]), (24, 16, [16, 8])]
)
def test_a_small_remainder_shares_with_a_whole_batch(documents: int, size: int, expected: list[int]) -> None:
    batches = global_batches(np.arange(documents, dtype=np.int64), size, 13, 1)
    assert sorted(map(len, batches)) == sorted(expected)
    assert sorted(np.concatenate(batches)) == list(range(documents))


@pytest.mark.parametrize("size", [2, 3, 4, 8])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_no_micro_batch_of_one(size: int, accumulation: int, processes: int) -> None:
    whole = size * accumulation * processes
    for documents in range(3 * whole, 4 * whole):
        for batch in global_batches(np.ones(documents, dtype=np.int64), whole, 13, 1):
            shares = micro_batches(batch, size, processes)
            assert len({len(share) for share in shares}) == 1
            parts = [len(part) for share in shares for part in share]
            assert sum(parts) == len(batch)
            assert max(parts) <= size + 1
            assert 1 not in parts or len(batch) == 1


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 5, 11, 12])
def test_micro_batches_cut_a_global_batch(count: int, processes: int) -> None:
    batch = np.arange(100, 100 + count)
    shares = micro_batches(batch, 4, processes)
    assert len(shares) == processes
    assert len({len(share) for share in shares}) == 1, "every process takes equally many steps"
    assert all(len(part) <= 4 for share in shares for part in share)
    assert sorted(np.concatenate([part for share in shares for part in share])) == batch.tolist()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_counts_every_document_once(lengths: np.ndarray, processes: int) -> None:
    shares = evaluation_batches(lengths, 32, processes)
    assert len({len(share) for share in shares}) == 1
    parts = [part for share in shares for part in share]
    assert sorted(np.concatenate(parts)) == list(range(1003))
    alone = {tuple(part) for part in evaluation_batches(lengths, 32, 1)[0]}
    assert {tuple(part) for part in parts if len(part)} == alone, "what shares a batch does not depend on the processes"


def test_ahead_keeps_order_and_raises() -> None:
    items = [np.array([index]) for index in range(7)]
    assert list(ahead(lambda item: int(item[0]) ** 2, items)) == [0, 1, 4, 9, 16, 25, 36]

    def fails(item: np.ndarray) -> int:
        raise ValueError("broken row")

    with pytest.raises(ValueError, match="broken row"):
        list(ahead(fails, items))
