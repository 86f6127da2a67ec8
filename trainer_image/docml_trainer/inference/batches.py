"""Which documents go through a model together: those of about one length, so that little of a batch is padding."""

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

# Padded tokens and documents of a batch. On a CPU the activations of larger batches leave the caches: MiniLM answers 6 % slower
# with 2,048 tokens than with 512 to 1,024, a model a tenth of its size equally fast from 1,024 on. A GPU wants more.
TOKENS = {"cpu": 1024, "cuda": 65_536}
DOCUMENTS = {"cpu": 32, "cuda": 512}


def length_sorted(lengths: Rows, device: str, fixed_batch: int | None = None) -> list[Rows]:
    """Row numbers by batch, the longest documents first: what does not fit into memory fails at once, and the last batches
    are the small ones that let several processes end together.

    lengths: int64[documents]. fixed_batch: the one batch size of an export that holds at one shape only.
    """
    order = np.argsort(-lengths, kind="stable")
    if fixed_batch is not None:
        return [order[start : start + fixed_batch] for start in range(0, len(order), fixed_batch)]
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        size = max(1, min(DOCUMENTS[device], TOKENS[device] // longest))
        batches.append(order[start : start + size])
        start += size
    return batches


def sample(lengths: Rows, count: int, seed: int = 0) -> Rows:
    """Up to `count` rows, drawn at random: the documents whose latency is measured."""
    return np.sort(np.random.default_rng(seed).permutation(len(lengths))[:count])
