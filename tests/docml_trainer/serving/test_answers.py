"""Which documents share a batch, and that each gets its own answer."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from docml_trainer.data.shapes import Shape
from docml_trainer.errors import DataError
from docml_trainer.inference.model import softmax
from docml_trainer.serving.answers import Batcher, choose_batch
from docml_trainer.serving.documents import RequestError


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


class CountingModel:
    """Its logits are a document's length and 0; it refuses one of 13 and breaks at one of 17."""

    collate = SimpleNamespace(shapes={"input_ids": Shape((None,), "int64")})
    device = SimpleNamespace(type="cpu")
    files = SimpleNamespace(fixed_batch=None)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, Any]:
        lengths = [row["input_ids"].size for row in rows]
        time.sleep(0.001)
        if 13 in lengths:
            raise DataError("thirteen")
        if 17 in lengths:
            raise ValueError("seventeen secret words")
        return np.array([[length / 100, 0.0] for length in lengths], dtype=np.float32)


def test_each_gets_its_own_answer_alone_and_in_company() -> None:
    shared: list[int] = []
    warnings: list[str] = []
    batcher = Batcher(CountingModel(), "", shared.append, warnings.append)  # type: ignore[arg-type]

    async def ask() -> None:
        lengths = [int(length) for length in np.random.default_rng(0).integers(1, 200, 300)] + [13, 14, 17]
        for some in (lengths[:5], [13], lengths):
            answers = await asyncio.gather(
                *(batcher.predict({"input_ids": np.zeros(length)}) for length in some), return_exceptions=True
            )
            for length, answer in zip(some, answers, strict=True):
                if length == 13:
                    assert isinstance(answer, RequestError)
                    assert (answer.status, str(answer)) == (422, "thirteen")
                elif length == 17:
                    assert isinstance(answer, RequestError)
                    assert (answer.status, str(answer)) == (500, "the model failed on this document")
                else:
                    assert isinstance(answer, np.ndarray)
                    assert answer == pytest.approx(softmax(np.array([[length / 100, 0.0]]))[0], abs=1e-6)
        for length in lengths[:20]:
            assert (await batcher.predict({"input_ids": np.zeros(length)})).shape == (2,)
        late = [asyncio.create_task(batcher.predict({"input_ids": np.zeros(length)})) for length in lengths[:50]]
        await asyncio.sleep(0)
        await asyncio.to_thread(batcher.close)  # answers what waits
        assert all(isinstance(answer, np.ndarray) for answer in await asyncio.gather(*late))

    asyncio.run(ask())
    assert max(shared) > 1
    assert set(warnings) == {"the model failed on a document with ValueError"}  # whose words may be the document's
