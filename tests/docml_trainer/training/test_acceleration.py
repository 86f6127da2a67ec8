"""How many documents fit: from two measured micro-batches."""

import pytest

from docml_trainer.training.acceleration import largest_batch


@pytest.mark.parametrize(
    ("available", "share", "expected"),
    [
        (1000, 64, 32),  # 50 + 20 × 47 fit, and 64 documents are two micro-batches of 32
        (10_000, 64, 64),
        (200, 64, 7),  # 7 fit: ten micro-batches of at most 7
        (10, 64, 1),  # not even one: the training says that memory is short
        (1000, 2, 2),  # too few to measure anything
    ],
)
def test_the_largest_micro_batch_that_fits(available: int, share: int, expected: int) -> None:
    measured: list[int] = []

    def peak_of(documents: int) -> int:
        measured.append(documents)
        return 50 + 20 * documents

    assert largest_batch(peak_of, available, share) == expected
    assert max(measured, default=0) <= min(8, share)
