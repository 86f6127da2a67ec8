"""Which documents are nearly the same: MinHash over shingles of token ids, and locality-sensitive hashing.

Two documents that nearly coincide must not straddle splits, or the test set measures memory. Signatures are computed while
encoding, in parallel; groups are found once all signatures are there. The similarity is the Jaccard index of the documents'
sets of 3-token shingles, estimated from 128 permutations (standard error .027 at .9).

MinHash: A. Broder, "On the resemblance and containment of documents", 1997; datasketch's implementation. Banding: Leskovec,
Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3; the numbers of bands and rows are datasketch's for the threshold.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

PERMUTATIONS = 128
SHINGLE = 3  # tokens
SEED = 1
_MULTIPLIERS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], dtype=np.uint32)
# False negatives weigh more: what banding proposes is checked against the full signatures.
_LSH_WEIGHTS = (0.1, 0.9)

Array = np.ndarray[Any, Any]


def compute_signatures(documents: Iterable[Array]) -> Array:
    """MinHash signatures (uint32[n, 128]) of documents given as arrays of token ids."""
    from datasketch import MinHash

    # datasketch hashes item by item; given one array as its only item, it takes the array for the column of hash values.
    sketch = MinHash(num_perm=PERMUTATIONS, seed=SEED, hashfunc=lambda hashes: hashes)
    found = []
    for ids in documents:
        sketch.clear()
        sketch.update_batch([_shingles(ids)])
        found.append(sketch.digest())
    return np.array(found, dtype=np.uint32).reshape(-1, PERMUTATIONS)


def find_groups(signatures: Array, threshold: float) -> Array:
    """The group of every document (int64[n]): the index of its first member. A document without near-duplicates is alone.

    Groups are the connected components of the pairs whose estimated similarity is at least `threshold`, so they depend
    neither on the order of the documents nor on how they were spread over processes. At threshold 1 nothing is compared.
    """
    count = len(signatures)
    if threshold >= 1 or count == 0:
        return np.arange(count)
    distinct, identical = np.unique(signatures, axis=0, return_inverse=True)
    edges = list(_edges(distinct, threshold))
    of_distinct = _components(len(distinct), edges)
    component = of_distinct[identical.reshape(-1)]
    first = np.full(len(distinct), count, dtype=np.int64)
    np.minimum.at(first, component, np.arange(count))
    return first[component]


def name_groups(guids: Sequence[str], signatures: Array, threshold: float) -> list[str | None]:
    """Groups by the smallest GUID among their members; None for a document that is alone."""
    firsts = find_groups(signatures, threshold).tolist()
    members: dict[int, list[str]] = {}
    for guid, first in zip(guids, firsts, strict=True):
        members.setdefault(first, []).append(guid)
    names = {first: min(found) if len(found) > 1 else None for first, found in members.items()}
    return [names[first] for first in firsts]


def _shingles(ids: Array) -> Array:
    """32-bit hashes of all runs of 3 tokens; a shorter document is one shingle."""
    tokens = ids.astype(np.uint32)
    if len(tokens) < SHINGLE:
        tokens = np.pad(tokens, (0, SHINGLE - len(tokens)), constant_values=np.uint32(0xFFFFFFFF))
    last = len(tokens) - SHINGLE + 1
    hashed = tokens[:last] * _MULTIPLIERS[0]
    for position in range(1, SHINGLE):
        hashed = (hashed ^ (hashed >> np.uint32(15))) + tokens[position : last + position] * _MULTIPLIERS[position]
    return hashed


def _edges(distinct: Array, threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs that connect what belongs together; enough of them for the components, not all."""
    from datasketch import MinHashLSH

    lsh = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=_LSH_WEIGHTS)
    needed = threshold * PERMUTATIONS
    for band in range(lsh.b):
        rows = np.ascontiguousarray(distinct[:, band * lsh.r : (band + 1) * lsh.r])
        keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).reshape(-1)
        _, bucket_of = np.unique(keys, return_inverse=True)
        order = np.argsort(bucket_of, kind="stable")
        starts = np.flatnonzero(np.diff(bucket_of[order], prepend=-1))
        ends = np.append(starts[1:], len(order))
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            yield from _edges_within(order[start:end], distinct, needed)


def _edges_within(bucket: Array, distinct: Array, needed: float) -> Iterator[tuple[int, int]]:
    """Spanning pairs of the similar documents of one bucket: each document is reached once."""
    unreached = bucket
    frontier: list[int] = []
    while unreached.size:
        if not frontier:
            frontier, unreached = [int(unreached[0])], unreached[1:]
        current = frontier.pop()
        similar = (distinct[unreached] == distinct[current]).sum(axis=1) >= needed
        for neighbour in unreached[similar].tolist():
            yield current, neighbour
            frontier.append(neighbour)
        unreached = unreached[~similar]


def _components(count: int, edges: list[tuple[int, int]]) -> Array:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(edges, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


MOST_COMPARED = 2_000  # documents of a split
SIMILARITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
COMPARED_AT_ONCE = 100
KNOWN_AT_ONCE = 20_000  # train documents
FREQUENT = 0.05  # share of the documents that have a term
MOST_PAIRS = 20_000  # of documents, compared one by one, of COMPARED_AT_ONCE


def nearest_train(weighted: Any, splits: Sequence[str]) -> dict[str, Any]:
    """How near the documents of the other splits are to train's, whatever the groups: the distribution of the highest cosine.

    weighted: rows of unit length, such as TF-IDF gives. By split: how many documents were compared (at most 2,000, evenly taken), and
    which share of them has a train document at least as similar as each of SIMILARITIES.
    """
    train, found = np.flatnonzero([split == "train" for split in splits]), {}
    chosen, asked, highest = {}, {}, {}
    for split in ("valid", "test"):
        rows = np.flatnonzero([name == split for name in splits])
        if len(rows) and len(train):
            chosen[split] = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_COMPARED)).round().astype(np.int64)]
            asked[split], highest[split] = weighted[chosen[split]], np.zeros(len(chosen[split]))
    for start in range(0, len(train) if asked else 0, KNOWN_AT_ONCE):
        known = weighted[train[start : start + KNOWN_AT_ONCE]]
        for split, rows in asked.items():
            highest[split] = np.maximum(highest[split], highest_cosines(rows, known))
    for split, values in highest.items():
        shares = {f"{edge:g}": round(float((values >= edge - 1e-6).mean()), 6) for edge in SIMILARITIES}
        found[split] = {"documents": len(values), "shares": shares}
    return found


def highest_cosines(asked: Any, known: Any) -> Array:
    """float64[asked]: the highest cosine of each row with one of `known`; where it is below the least of SIMILARITIES, any number below.

    Frequent terms are most of the work and little of a cosine: what they add to the product of two rows is at most the length of the part of
    the first one that they make. So the product of the other terms says which pairs can be similar enough, and only these are compared.
    """
    from scipy import sparse

    everyone = np.arange(asked.shape[0])
    if not sparse.issparse(asked):
        return np.concatenate([(part @ known.T).max(axis=1) for part in _in_parts(asked)])
    rare = np.flatnonzero(np.bincount(known.indices, minlength=known.shape[1]) <= FREQUENT * known.shape[0])
    asked_rare, known_rare = asked[:, rare], known[:, rare].T.tocsr()
    rest = np.sqrt(np.maximum(0, 1 - _sums(asked_rare.multiply(asked_rare))))
    highest, transposed = np.zeros(len(everyone)), None
    for start in range(0, len(everyone), COMPARED_AT_ONCE):
        part = everyone[start : start + COMPARED_AT_ONCE]
        product = asked_rare[part] @ known_rare
        owners = np.repeat(part, np.diff(product.indptr))
        maybe = product.data + rest[owners] >= SIMILARITIES[0] - 1e-6
        if rest[part].max() >= SIMILARITIES[0] - 1e-6 or maybe.sum() > MOST_PAIRS:
            transposed = known.T.tocsr() if transposed is None else transposed
            highest[part] = (asked[part] @ transposed).toarray().max(axis=1)
        else:
            pairs = owners[maybe], product.indices[maybe]
            np.maximum.at(highest, pairs[0], _sums(asked[pairs[0]].multiply(known[pairs[1]])))
    return highest


def _sums(rows: Any) -> Array:
    """Of each row; float64[rows], whichever of scipy's kinds of matrix it is."""
    return np.asarray(rows.sum(axis=1), dtype=np.float64).reshape(-1)


def _in_parts(rows: Any) -> Iterator[Any]:
    return (rows[start : start + COMPARED_AT_ONCE] for start in range(0, len(rows), COMPARED_AT_ONCE))
