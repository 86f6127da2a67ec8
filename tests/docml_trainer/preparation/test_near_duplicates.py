"""Signatures are datasketch's; groups are components, whatever the order."""

import numpy as np
import pytest
from datasketch import MinHash
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics.pairwise import cosine_similarity

from docml_trainer.preparation import near_duplicates
from docml_trainer.preparation.near_duplicates import (
    PERMUTATIONS,
    SEED,
    SIMILARITIES,
    compute_signatures,
    find_groups,
    highest_cosines,
    nearest_train,
)

random = np.random.default_rng(5)


def edited(ids: np.ndarray, edits: int) -> np.ndarray:
    changed = ids.copy()
    changed[random.choice(len(ids), edits, replace=False)] = 29_999
    return changed


def test_signatures_are_what_datasketch_computes_hash_by_hash() -> None:
    ids = random.integers(0, 30_000, 300)
    one_by_one = MinHash(num_perm=PERMUTATIONS, seed=SEED, hashfunc=int)
    for value in near_duplicates._shingles(ids).tolist():
        one_by_one.update(value)
    assert np.array_equal(compute_signatures([ids])[0], one_by_one.hashvalues)


def test_the_estimate_is_the_jaccard_index_of_the_shingles() -> None:
    ids = random.integers(0, 30_000, 2_000)
    other = edited(ids, 40)
    mine, theirs = (set(near_duplicates._shingles(each).tolist()) for each in (ids, other))
    exact = len(mine & theirs) / len(mine | theirs)
    first, second = compute_signatures([ids, other])
    assert abs((first == second).mean() - exact) < 0.1


def test_near_duplicates_are_grouped_and_others_left_alone() -> None:
    bases = [random.integers(0, 30_000, 500) for _ in range(30)]
    documents = [*bases, *(edited(base, 3) for base in bases[:10]), bases[0]]
    found = find_groups(compute_signatures(documents), 0.9)
    assert found[30:40].tolist() == list(range(10))
    assert found[40] == 0
    assert found[:30].tolist() == list(range(30))


def test_groups_do_not_depend_on_the_order() -> None:
    bases = [random.integers(0, 30_000, 200) for _ in range(20)]
    documents = [edited(base, 1) for base in bases for _ in range(4)]
    order = random.permutation(len(documents))
    straight = find_groups(compute_signatures(documents), 0.8)
    shuffled = find_groups(compute_signatures([documents[index] for index in order]), 0.8)
    partners = {frozenset(np.flatnonzero(straight == group).tolist()) for group in straight}
    assert partners == {frozenset(order[np.flatnonzero(shuffled == group)].tolist()) for group in shuffled}


def test_many_equal_and_short_documents() -> None:
    documents = [np.array([7, 7])] * 500 + [np.array([], dtype=int)] * 2 + [np.array([8])]
    assert find_groups(compute_signatures(documents), 0.9).tolist() == [0] * 500 + [500, 500, 502]


def test_threshold_one_turns_it_off() -> None:
    same = compute_signatures([np.arange(50), np.arange(50)])
    assert find_groups(same, 1.0).tolist() == [0, 1]
    assert find_groups(same[:0], 0.9).tolist() == []


@pytest.mark.parametrize("at_once", [20_000, 70])
def test_the_nearest_train_documents_are_scikit_learns(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "KNOWN_AT_ONCE", at_once)
    random = np.random.default_rng(0)
    weighted = TfidfTransformer().fit_transform(sparse.csr_array(random.poisson(0.4, (260, 40)).astype(np.float64)))
    weighted = sparse.csr_array(weighted.toarray()[[*range(250), *range(10)]])  # the last ten have a twin in train
    splits = ["train"] * 200 + ["valid"] * 30 + ["test"] * 30
    found = nearest_train(weighted, splits)
    for split, rows in (("valid", range(200, 230)), ("test", range(230, 260))):
        highest = cosine_similarity(weighted[[*rows]], weighted[:200]).max(axis=1)
        assert found[split]["documents"] == 30
        assert found[split]["shares"] == {
            f"{edge:g}": round((highest >= edge - 1e-9).mean(), 6) for edge in SIMILARITIES
        }
    assert found["test"]["shares"]["0.99"] == round(10 / 30, 6)
    assert nearest_train(weighted, ["train"] * 260) == {}


@pytest.mark.parametrize("most", [20_000, 0], ids=["pairs that rarer terms join", "too many of these"])
def test_frequent_terms_hide_no_similar_document(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MOST_PAIRS", most)
    random = np.random.default_rng(1)
    counts = np.hstack([random.poisson(2, (330, 10)), random.poisson(0.02, (330, 2_000))]).astype(np.float32)
    for row in range(300, 330):  # from a twin in train to a document that shares frequent terms only
        twin, own = counts[row - 300], counts[row]
        kept = random.random(len(own)) < (row - 300) / 29
        counts[row] = np.where(kept, own, twin)
    weighted = TfidfTransformer().fit_transform(sparse.csr_array(counts))
    asked, known = weighted[300:], weighted[:300]
    expected = cosine_similarity(asked, known).max(axis=1)
    assert 5 < (expected >= 0.5).sum() < 25
    found = highest_cosines(asked, known)
    assert found[expected >= 0.5] == pytest.approx(expected[expected >= 0.5], abs=1e-5)
    assert (found[expected < 0.5] < 0.5).all()
