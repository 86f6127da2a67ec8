"""Batches of about one length."""

import numpy as np
import pytest

from docml_trainer.inference.batches import DOCUMENTS, TOKENS, length_sorted, sample


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_row_is_in_one_batch_within_the_limits(device: str) -> None:
    lengths = np.random.default_rng(0).integers(1, 600, 1000)
    batches = length_sorted(lengths, device)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    for rows in batches:
        assert len(rows) <= DOCUMENTS[device]
        assert len(rows) * lengths[rows].max() <= TOKENS[device]
    longest = [int(lengths[rows].max()) for rows in batches]
    assert longest == sorted(longest, reverse=True)


def test_little_is_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 513, 5000)
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in length_sorted(lengths, "cpu"))
    assert padded < 1.02 * lengths.sum()


def test_a_document_beyond_the_limit_goes_alone() -> None:
    assert [rows.tolist() for rows in length_sorted(np.array([3, 10_000]), "cpu")] == [[1], [0]]


def test_documents_without_tokens() -> None:
    assert [rows.tolist() for rows in length_sorted(np.array([0, 0]), "cpu")] == [[0, 1]]


def test_a_fixed_batch() -> None:
    assert [rows.tolist() for rows in length_sorted(np.array([1, 2, 3]), "cpu", fixed_batch=2)] == [[2, 1], [0]]


def test_a_sample_is_drawn_once_for_all() -> None:
    lengths = np.zeros(100, dtype=np.int64)
    assert sample(lengths, 20).tolist() == sample(lengths, 20).tolist()
    assert sample(lengths[:3], 20).tolist() == [0, 1, 2]
