"""What the baseline knows of documents: counts of terms, and pooled values."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer

from docml_trainer.data.shapes import Shape
from docml_trainer.preparation import baseline_inputs as module
from docml_trainer.preparation.baseline_inputs import TermCounts, WeightedTerms, pool_pictures, pool_values


def count_terms(tokens: np.ndarray, ends: np.ndarray) -> tuple[sparse.csr_array, bool]:
    counts = TermCounts(tokens, ends)
    return counts[np.arange(len(ends))], counts.hashed


def test_terms_are_tokens_and_pairs_of_neighbours() -> None:
    counts, hashed = count_terms(np.array([1, 2, 1, 2, 3]), np.array([2, 2, 5]))
    assert not hashed
    parts = counts.toarray()
    assert sorted(parts[0]) == [0, 0, 1, 1, 1]  # 1, 2 and the pair
    assert not parts[1].any()
    assert sorted(parts[2]) == [1, 1, 1, 1, 1]


def test_terms_are_the_same_whatever_numbers_tokens_have_and_however_documents_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(0)
    tokens, ends = random.integers(0, 30, 900), np.sort(random.integers(0, 900, 50))
    ends[-1] = 900
    counts, _ = count_terms(tokens, ends)
    pairs = [Counter(pairwise(part)) for part in np.split(tokens, ends[:-1])]
    singles = [Counter(part) for part in np.split(tokens, ends[:-1])]
    for row, found in enumerate(counts.toarray()):
        assert sorted(found[found > 0]) == sorted([*pairs[row].values(), *singles[row].values()])
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 100)
    monkeypatch.setattr(module, "DOCUMENTS_COUNTED", 3)
    for other in (tokens, tokens - 15, tokens + 10**12):
        again, _ = count_terms(other, ends)
        assert sorted(map(tuple, again.toarray().T)) == sorted(map(tuple, counts.toarray().T))


@pytest.mark.parametrize("limit", [2**20, 100], ids=["terms", "buckets"])
def test_counts_are_the_same_whether_they_are_kept_or_found_anew(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 70)
    monkeypatch.setattr(module, "COUNTED_AT_ONCE", 9)
    monkeypatch.setattr(module, "MAX_TERMS", limit)
    random = np.random.default_rng(1)
    tokens, ends = random.integers(0, 30, 900).astype(np.int32), np.sort(random.integers(0, 900, 50))
    ends[-1] = 900
    counts, hashed = count_terms(tokens, ends)
    assert hashed == (limit == 100)
    rows = random.permutation(50)[:20]
    every = TermCounts(tokens, ends).keep(rows)
    monkeypatch.setattr(module, "MOST_KEPT", 0)
    some = TermCounts(tokens, ends).keep(rows)
    for kept in (every, some):
        for asked in (rows[::2], np.setdiff1d(np.arange(50), rows), np.arange(50)):
            assert (kept[asked] != counts[asked]).nnz == 0
        assert kept.spread().tolist() == counts.count_nonzero(axis=0).tolist()
        weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
        assert WeightedTerms(kept)[rows[:0]].shape == (0, counts.shape[1])
        assert WeightedTerms(kept)[rows].toarray() == pytest.approx(weighted[rows].toarray(), abs=1e-6)


def test_more_terms_than_the_limit_share_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TERMS", 200)
    counts, hashed = count_terms(np.arange(1000), np.array([400, 1000]))
    assert hashed
    assert counts.shape == (2, 200)
    assert counts.sum() == 1000 + 998


def test_fixed_axes_are_pooled_in_stretches_until_few_values_are_left() -> None:
    pages = np.random.default_rng(0).integers(0, 255, (3, 2, 12, 5))
    pooled = pool_values(pa.array(pages.tolist()), Shape((2, 12, 5), "uint8"), 20)
    # 120 values: 12 is halved to 6, that to 3, and 5 to 3, of stretches of two, two and one
    parts = np.stack([part.mean(axis=3) for part in np.split(pages, [2, 4], axis=3)], axis=3)
    expected = parts.reshape(3, 2, 3, 4, 3).mean(axis=3)
    assert pooled == pytest.approx(expected.reshape(3, -1))


def test_free_axes_are_averaged_and_nothing_is_zero() -> None:
    boxes = pa.array([[[1.0, 2.0], [3.0, 6.0]], [], [[5.0, 7.0]]], pa.list_(pa.list_(pa.float32())))
    assert pool_values(boxes, Shape((None, 2), "float32"), 10).tolist() == [[2.0, 4.0], [0.0, 0.0], [5.0, 7.0]]
    nested = pa.array([[[1, 3], []], [[5]]], pa.list_(pa.list_(pa.int32())))
    assert pool_values(nested, Shape((None, None), "int32"), 10).tolist() == [[1.0], [5.0]]
    assert pool_values(pa.array([4, 9]), Shape((), "int32"), 10).tolist() == [[4.0], [9.0]]


def test_pictures_are_made_equally_small_and_averaged() -> None:
    halves = np.zeros((3, 4, 8), dtype=np.uint8)
    halves[0, :, 4:], halves[2] = 200, 10  # red on the right, a little blue everywhere
    expected = [0.0, 0.0, 10.0, 200.0, 0.0, 10.0] * 2
    assert pool_pictures([halves, halves[:, :2, 2:6]], 12).tolist() == [expected, expected]
    pages = pool_pictures([[halves, halves * 0], []], 13)
    assert pages.tolist() == [[value / 2 for value in expected], [0.0] * 12]
    assert pool_pictures([halves], 1).tolist() == [[100.0, 0.0, 10.0]]
