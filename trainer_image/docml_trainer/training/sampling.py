"""Which documents make up an optimizer step, and which of them a process takes in which micro-batch.

The global batch of a step depends on the seed, the epoch and the documents' lengths alone. It is cut for processes and accumulation
afterwards, so that 4 × 1, 2 × 2 and 1 × 4 micro-batches train on the same documents in the same order of steps.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from docml_trainer.data.datasets import Rows

T = TypeVar("T")
GROUPED_BATCHES = (
    50  # global batches whose documents are sorted by length together: enough to pad little, few enough to mix
)


def global_batches(lengths: Rows, size: int, seed: int, epoch: int) -> list[Rows]:
    """The optimizer steps of one epoch: every document once, `size` a step, the remainder in the last step.

    A remainder below half of `size` shares the documents of the last whole batch evenly: batch normalization cannot do with one
    document, and a step on very few is a noisy one. A random order is cut into groups of GROUPED_BATCHES batches; within a group documents are sorted by length (ties in random
    order), so that the batches cut from it pad little; then the batches are shuffled.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    group = size * max(1, min(GROUPED_BATCHES, len(order) // (4 * size)))
    batches: list[Rows] = []
    for start in range(0, len(order), group):
        rows = order[start : start + group]
        # Longest first within the group: the remainder, which has fewer documents, then holds the shortest.
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        batches += [rows[first : first + size] for first in range(0, len(rows), size)]
    whole, rest = batches[: len(order) // size], batches[len(order) // size :]
    if whole and rest and 2 * len(rest[0]) < size:
        shared = np.concatenate([whole[-1], rest[0]])
        whole[-1], rest = shared[: -(-len(shared) // 2)], [shared[-(-len(shared) // 2) :]]
    return [whole[index] for index in random.permutation(len(whole))] + rest


def micro_batches(batch: Rows, size: int, processes: int) -> list[list[Rows]]:
    """A global batch as `[process][micro-batch] -> rows`: equally many micro-batches for every process, of at most `size` rows.

    Neighbours in length share a micro-batch, and at any time all processes work on similar lengths. None has a single row, which
    batch normalization cannot do with, unless there is no other or `size` is 1: rather one has `size` + 1, or some are empty. The
    process of an empty one takes part with weight 0.
    """
    count = -(-len(batch) // size)
    count = -(-count // processes) * processes
    if size > 1 and len(batch) < 2 * count:
        cuts = np.array_split(batch, max(1, len(batch) // 2))
        cuts += [batch[:0]] * (-len(cuts) % processes)
    else:
        cuts = np.array_split(batch, count)
    return [cuts[process::processes] for process in range(processes)]


def evaluation_batches(lengths: Rows, size: int, processes: int) -> list[list[Rows]]:
    """All documents once, longest first, as `[process][round] -> rows`; equally many rounds for every process.

    What shares a batch does not depend on the number of processes. The rows of a round may be empty.
    """
    order = np.argsort(-lengths, kind="stable")
    cuts = [order[start : start + size] for start in range(0, len(order), size)]
    cuts += [order[:0]] * (-len(cuts) % processes)
    return [cuts[process::processes] for process in range(processes)]


def ahead(function: Callable[[Rows], T], items: Iterable[Rows]) -> Iterator[T]:
    """`map(function, items)`, the next two computed in a thread while the caller works on the last one."""
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[T]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
