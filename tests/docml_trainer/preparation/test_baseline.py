"""The baseline: equal to scikit-learn's own pipeline, out of fold where it answers about what it was fitted on."""

from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline

from docml_trainer.preparation import baseline as module
from docml_trainer.preparation.baseline import Baseline, count_terms, fit_baseline
from docml_trainer.preparation.splits import SplitAssignment

LABELS = ("invoice", "letter", "memo")
datasets.disable_progress_bars()


def write(folder: Path, documents: int = 240, *, chunks: bool = False, groups: int | None = None) -> SplitAssignment:
    """Splits of documents whose label shows in some of their tokens; returns who belongs together."""
    random = np.random.default_rng(5)
    rows = []
    for number in range(documents):
        label = number % len(LABELS)
        tokens = random.integers(0, 60, random.integers(20, 40))
        marked = random.random(len(tokens)) < 0.15
        tokens[marked] = 60 + label * 10 + random.integers(0, 10, marked.sum())
        values = tokens.tolist()
        rows.append((f"doc-{number:04d}", label, [values[:15], values[15:]] if chunks else values))
    splits = ["train" if number % 5 < 3 else "valid" if number % 5 == 3 else "test" for number in range(documents)]
    inner = datasets.List(datasets.Value("int32"))
    features = datasets.Features(
        {
            "artifact_guid": datasets.Value("string"),
            "labels": datasets.ClassLabel(names=list(LABELS)),
            "input_ids": datasets.List(inner) if chunks else inner,
        }
    )
    for split in ("train", "valid", "test"):
        chosen = [row for row, name in zip(rows, splits, strict=True) if name == split]
        columns = dict(zip(features, map(list, zip(*chosen, strict=True)), strict=True))
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder / split))
    names = [None if groups is None else f"group {number // 15 % groups}" for number in range(documents)]
    guids, labels = [row[0] for row in rows], [LABELS[row[1]] for row in rows]
    return SplitAssignment(guids, labels, names, [None] * documents, list(splits))


def fitted(folder: Path, assignment: SplitAssignment) -> Baseline:
    made = fit_baseline(folder, "input_ids", assignment, LABELS)
    assert isinstance(made, Baseline), made
    return made


@pytest.mark.parametrize("chunks", [False, True], ids=["flat", "chunks"])
def test_it_equals_a_pipeline_of_scikit_learn(tmp_path: Path, chunks: bool) -> None:
    made = fitted(tmp_path, write(tmp_path, chunks=chunks))
    texts, labels, splits = {}, {}, {}
    for split in ("train", "valid", "test"):
        for row in datasets.load_from_disk(str(tmp_path / split)):
            tokens = list(chain.from_iterable(row["input_ids"])) if chunks else row["input_ids"]
            texts[row["artifact_guid"]] = [str(token) for token in tokens]
            labels[row["artifact_guid"]], splits[row["artifact_guid"]] = row["labels"], split
    train = [guid for guid in sorted(texts) if splits[guid] == "train"]
    pipeline = make_pipeline(
        TfidfVectorizer(analyzer=lambda t: [*t, *(f"{a} {b}" for a, b in pairwise(t))], sublinear_tf=True, min_df=2),
        LogisticRegression(C=made.facts["C"], max_iter=200),
    ).fit([texts[guid] for guid in train], [labels[guid] for guid in train])
    for split in ("valid", "test"):
        guids = [guid for guid in sorted(texts) if splits[guid] == split]
        said, truth = pipeline.predict([texts[guid] for guid in guids]), [labels[guid] for guid in guids]
        ours = {row["artifact_guid"]: LABELS.index(row["prediction"]) for row in made.table.to_pylist()}
        for average in ("macro", "micro"):
            score, theirs = (
                f1_score(truth, found, average=average) for found in ([ours[guid] for guid in guids], said)
            )
            assert score == pytest.approx(theirs, abs=1e-9)
        assert made.facts["macro_f1"][split] == pytest.approx(f1_score(truth, said, average="macro"), abs=1e-6)
    for row in made.table.to_pylist():
        if row["split"] == "train":
            continue
        expected = pipeline.predict_proba([texts[row["artifact_guid"]]])[0]
        assert row["probabilities"] == pytest.approx(expected, abs=1e-4)
        assert row["prediction"] == LABELS[int(expected.argmax())]
        assert row["probability"] == pytest.approx(max(row["probabilities"]))
    assert made.facts["macro_f1"]["test"] > 0.8
    assert made.facts["terms"] == len(pipeline[0].vocabulary_)


def test_train_documents_are_answered_by_a_model_that_saw_nothing_of_their_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assignment = write(tmp_path, groups=7)
    group_of = dict(zip(assignment.guids, assignment.groups, strict=True))
    train = datasets.load_from_disk(str(tmp_path / "train"))["artifact_guid"][:]
    asked: list[tuple[set[str | None], set[str | None]]] = []
    real = module.answer

    def spy(counts, labels, fit, rows, strength, width):  # type: ignore[no-untyped-def]
        if len(rows) and rows.max() < len(train):
            asked.append(({group_of[train[row]] for row in fit}, {group_of[train[row]] for row in rows}))
        return real(counts, labels, fit, rows, strength, width)

    monkeypatch.setattr(module, "answer", spy)
    fitted(tmp_path, assignment)
    assert len(asked) >= 5
    assert all(not seen & answered for seen, answered in asked)


def test_more_terms_than_the_limit_share_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assignment = write(tmp_path)
    exact = fitted(tmp_path, assignment)
    monkeypatch.setattr(module, "MAX_TERMS", 200)
    counts, hashed = count_terms(np.arange(1000), np.array([400, 1000]))
    assert hashed
    assert counts.sum() == 1000 + 998
    monkeypatch.undo()
    assert not exact.facts["hashed"]
    parts = count_terms(np.array([1, 2, 1, 2, 3]), np.array([2, 2, 5]))[0].toarray()
    assert sorted(parts[0]) == [0, 0, 1, 1, 1]  # 1, 2 and the pair
    assert not parts[1].any()
    assert sorted(parts[2]) == [1, 1, 1, 1, 1]


def test_large_train_splits_are_sampled_by_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FITTED", 60)
    monkeypatch.setattr(module, "MAX_CHOOSING", 30)
    made = fitted(tmp_path, write(tmp_path))
    assert (made.facts["documents"], made.facts["of_train_documents"]) == (60, 144)
    assert made.table.num_rows == 240


def test_what_has_no_baseline_says_why(tmp_path: Path) -> None:
    assignment = write(tmp_path, groups=1)
    assert fit_baseline(tmp_path, None, assignment, LABELS) == "no feature is a list of token ids"
    together = "all documents of the train split belong together, so none could be held out"
    assert fit_baseline(tmp_path, "input_ids", assignment, LABELS) == together


def test_a_baseline_that_is_no_better_than_chance_says_so(tmp_path: Path) -> None:
    made = fitted(tmp_path, write(tmp_path))
    assert made.chance is None
    random = np.random.default_rng(0)
    guess = replace(made, probabilities=random.random(made.probabilities.shape, dtype=np.float32))
    assert guess.chance is not None
    assert guess.chance.endswith(
        " of the train documents correctly, and saying the most frequent label always would 33.3%"
    )
