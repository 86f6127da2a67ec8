"""Confident learning: wrong labels are found among documents that a model knows well, and counted."""

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.feature_extraction.text import TfidfTransformer

from docml_trainer.preparation import suspects as module
from docml_trainer.preparation.baseline_inputs import EncodedDocuments
from docml_trainer.preparation.suspects import bound_share, estimate_mistakes, list_suspects, rank_suspects

NAMES = ("invoice", "letter", "memo", "unused")


def answers(documents: int, flipped: float, accuracy: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels as given, as they are, and what a model of this accuracy says, sure of itself as it should be: float32[n, 4]."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, documents)
    given = truth.copy()
    rows = random.permutation(documents)[: round(flipped * documents)]
    given[rows] = (truth[rows] + random.integers(1, 3, len(rows))) % 3
    sure = random.beta(9 * accuracy, 9 * (1 - accuracy), documents)
    seen = np.where(random.random(documents) < sure, truth, (truth + random.integers(1, 3, documents)) % 3)
    found = np.repeat(((1 - sure) / 2)[:, np.newaxis], 3, axis=1)
    found[np.arange(documents), seen] = sure
    return given, truth, np.hstack([found / found.sum(1, keepdims=True), np.zeros((documents, 1))]).astype(np.float32)


@pytest.mark.parametrize("flipped", [0.0, 0.04, 0.08, 0.16])
def test_the_share_of_wrong_labels_is_estimated(flipped: float) -> None:
    found = [
        len(rank_suspects(given, said).rows) / len(given)
        for given, _, said in (answers(1000, flipped, 0.95, seed) for seed in range(10))
    ]
    assert np.mean(found) == pytest.approx(flipped, abs=0.03)


def test_the_most_doubtful_are_wrong_and_the_likely_label_is_the_true_one() -> None:
    given, truth, said = answers(1000, 0.08, 0.97, 3)
    ranking = rank_suspects(given, said)
    first = ranking.rows[:40]
    assert (given[first] != truth[first]).mean() > 0.95
    wrong = first[given[first] != truth[first]]
    assert (ranking.likely[:40][given[first] != truth[first]] == truth[wrong]).all()
    assert (np.diff(ranking.confidence) >= 0).all()
    assert (ranking.margins < 0).all()
    assert 3 not in ranking.likely  # no document has that label


def test_mistakes_between_two_labels_are_told_from_a_models_own_confusions() -> None:
    """Two pairs of labels look alike to a model; between the labels of the first pair many were also given by mistake."""
    random = np.random.default_rng(2)
    truth = np.arange(2000) % 4
    sure = random.uniform(0.55, 0.95, 2000)
    seen = np.where(random.random(2000) < sure, truth, truth ^ 1)
    said = np.full((2000, 4), 0.01, dtype=np.float32)
    said[np.arange(2000), seen] += 0.96 * sure
    said[np.arange(2000), seen ^ 1] += 0.96 * (1 - sure)
    given = np.where((truth < 2) & (random.random(2000) < 0.25), truth ^ 1, truth)
    likeliest = said[np.arange(2000), seen].astype(np.float64)
    mistakes = estimate_mistakes(given, seen, likeliest, np.bincount(given))
    assert mistakes.sum(axis=1) == pytest.approx(np.ones(4))
    assert mistakes[0, 1] == pytest.approx(0.25 * 0.8 + 0.75 * 0.15, abs=0.06)  # the surer half is wrong in a seventh
    assert mistakes[2, 3] == pytest.approx(0.15, abs=0.05)
    assert mistakes[0, 2] < 0.01
    ranking = rank_suspects(given, said)
    own = said[np.arange(2000), given]
    ours, by_probability = ((given != truth)[rows[:200]].mean() for rows in (ranking.rows, np.argsort(own)))
    assert ours > by_probability + 0.05


def test_the_share_is_bounded_as_scipy_has_it() -> None:
    assert bound_share(0, 0) == 0
    assert stats.binom.cdf(40, 600, bound_share(40, 600)) == pytest.approx(0.05)


def test_labels_that_a_model_never_confuses_are_not_doubted() -> None:
    given = np.array([0, 1, 2] * 20)
    said = np.full((60, 4), 0.01, dtype=np.float32)
    said[np.arange(60), given] = 0.97
    assert not len(rank_suspects(given, said).rows)
    assert not len(rank_suspects(np.zeros(5, dtype=np.int64), np.ones((5, 1), dtype=np.float32)).rows)


def test_rare_labels_draw_no_suspicion_on_what_a_model_knows() -> None:
    """One label is of documents that belong together, so that no fit that answered knew it; another is rare and hardly known."""
    given, truth, three = answers(600, 0.08, 0.97, 5)
    random = np.random.default_rng(0)
    said = np.hstack([three[:, :3], random.uniform(0.001, 0.03, (600, 2))])
    together, rare = np.arange(6), np.arange(6, 12)
    given[together], given[rare] = 3, 4
    said[together, 3], said[rare, 4] = 0.0, 0.002
    ranking = rank_suspects(given, (said / said.sum(axis=1, keepdims=True)).astype(np.float32))
    assert not set(together) & set(ranking.rows)
    others = ~np.isin(ranking.rows, rare)
    assert set(ranking.likely[others]) <= {0, 1, 2}
    first = ranking.rows[others][:25]
    assert (given[first] != truth[first]).mean() > 0.95


@pytest.mark.parametrize("at_once", [20_000, 1])
def test_a_suspect_comes_with_its_nearest_documents_of_both_labels(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KNOWN_AT_ONCE", at_once)
    # Document 0 has the words of letters and the label of invoices.
    words = np.array([[0, 5, 0], [5, 0, 0], [4, 1, 0], [0, 6, 0], [1, 2, 0], [5, 0, 1], [0, 5, 1]], dtype=np.float64)
    labels = np.array([0, 0, 0, 1, 1, 0, 1])
    said = np.full((7, 4), 0.02, dtype=np.float32)
    said[np.arange(7), labels] = 0.94
    said[0, :2] = 0.02, 0.94
    documents = EncodedDocuments(
        [f"doc-{number}" for number in range(7)], labels, ["train"] * 6 + ["test"], labels, labels
    )
    table, facts = list_suspects(
        documents, said, TfidfTransformer(sublinear_tf=True).fit_transform(sparse.csr_array(words)), NAMES
    )
    (row,) = table.to_pylist()
    assert row["artifact_guid"] == "doc-0"
    assert (row["label"], row["likely_label"], row["split"]) == ("invoice", "letter", "train")
    assert row["nearest_likely"] == "doc-3"
    assert row["nearest_same"] == "doc-2"
    assert facts == {
        "documents": 1,
        "share": round(1 / 7, 6),
        "share_upper95": 0.520703,
        "pairs": [{"label": "invoice", "likely_label": "letter", "count_all": 1}],
    }
