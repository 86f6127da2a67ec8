"""Which documents share a batch."""

import pytest

from docml_trainer.serving.answers import choose_batch


@pytest.mark.parametrize(
    ("lengths", "device", "fixed_batch", "expected"),
    [
        ([100], "cpu", None, {0}),
        ([100, 100, 100], "cpu", None, {0, 1, 2}),
        ([100, 500, 90, 20, 110], "cpu", None, {0, 2, 4}),  # 400 and 80 tokens of padding cost more than calls
        ([100, 500, 90, 20, 110], "cuda", None, {0, 1, 2, 3, 4}),
        ([500, 10, 10, 10, 10], "cpu", None, {0}),  # the first is answered, however well the others go together
        ([128] * 20, "cpu", None, set(range(8))),  # 1,024 tokens
        ([2000, 2000], "cpu", None, {0}),
        ([1] * 40, "cpu", None, set(range(32))),
        ([0, 0], "cpu", None, {0, 1}),
        ([512, 3, 7], "cpu", 2, {0, 2}),  # an export of one shape costs the same whatever it holds
        ([512, 3, 7], "cpu", 8, {0, 1, 2}),
    ],
)
def test_the_first_and_those_of_about_its_length(
    lengths: list[int], device: str, fixed_batch: int | None, expected: set[int]
) -> None:
    assert choose_batch(lengths, device, fixed_batch) == expected
