import numpy as np
import pytest

from docml_trainer.training.sampling import ahead, evaluation_batches, global_batches, micro_batches


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
