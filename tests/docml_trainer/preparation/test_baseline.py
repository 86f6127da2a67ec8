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
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from docml_trainer.preparation import baseline as module
from docml_trainer.preparation import baseline_inputs
from docml_trainer.preparation.baseline import Baseline, fit_baseline
from docml_trainer.preparation.near_duplicates import nearest_train
from docml_trainer.preparation.splits import SplitAssignment
from docml_trainer.preparation.suspects import list_suspects

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


def write_pages(folder: Path, documents: int = 240) -> SplitAssignment:
    """Splits of pictures and vectors without tokens; a label shows in a corner of the picture."""
    random = np.random.default_rng(6)
    labels = np.arange(documents) % len(LABELS)
    pages = random.integers(0, 200, (documents, 3, 16, 16), dtype=np.uint8)
    for number, label in enumerate(labels):
        pages[number, label, :4, :4] += 55
    columns = {
        "page": list(pages),
        "page_ids": [[7]] * documents,
        "vector": list(random.random((documents, 5), dtype=np.float32)),
    }
    features = datasets.Features(
        {
            "artifact_guid": datasets.Value("string"),
            "labels": datasets.ClassLabel(names=list(LABELS)),
            "page": datasets.Array3D((3, 16, 16), "uint8"),
            "page_ids": datasets.List(datasets.Value("int32"), length=1),
            "vector": datasets.List(datasets.Value("float32"), length=5),
        }
    )
    guids = [f"doc-{number:04d}" for number in range(documents)]
    splits = ["train" if number % 5 < 3 else "valid" if number % 5 == 3 else "test" for number in range(documents)]
    for split in ("train", "valid", "test"):
        rows = [number for number, name in enumerate(splits) if name == split]
        chosen = {name: [values[row] for row in rows] for name, values in columns.items()}
        own = {"artifact_guid": [guids[row] for row in rows], "labels": labels[rows].tolist()}
        datasets.Dataset.from_dict({**own, **chosen}, features=features).save_to_disk(str(folder / split))
    none = [None] * documents
    return SplitAssignment(guids, [LABELS[label] for label in labels], none, none, list(splits))


def fitted(folder: Path, assignment: SplitAssignment) -> Baseline:
    made = fit_baseline(folder, "input_ids", assignment, LABELS)
    assert isinstance(made, Baseline), made
    return made


@pytest.mark.parametrize("chunks", [False, True], ids=["flat", "chunks"])
def test_it_equals_a_pipeline_of_scikit_learn(tmp_path: Path, chunks: bool) -> None:
    made = fitted(tmp_path, write(tmp_path, chunks=chunks))
    assert made.facts["rarest"] == 2
    equals_a_pipeline(tmp_path, made, LogisticRegression(C=made.facts["C"], max_iter=200))


@pytest.mark.parametrize("weights", [2**24, 600], ids=["of two documents", "few enough"])
def test_many_documents_are_fitted_by_average_gradients_on_terms_that_are_few_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: int
) -> None:
    monkeypatch.setattr(baseline_inputs, "MOST_KEPT", 0)
    monkeypatch.setattr(module, "ASKED_AT_ONCE", 7)
    monkeypatch.setattr(module, "MAX_ROTATED", 40)
    monkeypatch.setattr(module, "MAX_CHOOSING", 60)
    monkeypatch.setattr(module, "MAX_WEIGHTS", weights)
    made = fitted(tmp_path, write(tmp_path))
    assert (made.facts["rarest"] == 2) == (weights > 600)
    assert made.facts["terms"] <= weights / len(LABELS)
    equals_a_pipeline(tmp_path, made, module.regression(made.facts["C"], 144, terms=True))


def equals_a_pipeline(folder: Path, made: Baseline, regression: LogisticRegression) -> None:
    """Scores and answers about the splits below `folder` are those of scikit-learn's own."""
    texts, labels, splits = {}, {}, {}
    for split in ("train", "valid", "test"):
        for row in datasets.load_from_disk(str(folder / split)):
            chunked = isinstance(row["input_ids"][0], list)
            tokens = list(chain.from_iterable(row["input_ids"])) if chunked else row["input_ids"]
            texts[row["artifact_guid"]] = [str(token) for token in tokens]
            labels[row["artifact_guid"]], splits[row["artifact_guid"]] = row["labels"], split
    train = [guid for guid in sorted(texts) if splits[guid] == "train"]
    vectorizer = TfidfVectorizer(
        analyzer=lambda t: [*t, *(f"{a} {b}" for a, b in pairwise(t))], sublinear_tf=True, min_df=made.facts["rarest"]
    )
    pipeline = make_pipeline(vectorizer, regression)
    pipeline.fit([texts[guid] for guid in train], [labels[guid] for guid in train])
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


def test_without_tokens_it_equals_a_pipeline_of_scikit_learn_on_pooled_values(tmp_path: Path) -> None:
    assignment = write_pages(tmp_path)
    made = fit_baseline(tmp_path, None, assignment, LABELS)
    assert isinstance(made, Baseline), made
    assert made.facts["feature"] == "page, vector"
    assert (made.facts["inputs"], made.facts["terms"], made.facts["hashed"]) == ("pooled values", 3 * 8 * 16 + 5, False)
    values, labels = {}, {}
    for split in ("train", "valid", "test"):
        rows = datasets.load_from_disk(str(tmp_path / split)).with_format("numpy")[:]
        cells = rows["page"].reshape(-1, 3, 8, 2, 16).mean(axis=3).reshape(len(rows["labels"]), -1)
        values[split], labels[split] = np.concatenate([cells, rows["vector"]], axis=1), rows["labels"]
    rooted = FunctionTransformer(lambda x: x / np.sqrt(x.shape[1]))
    pipeline = make_pipeline(StandardScaler(), rooted, LogisticRegression(C=made.facts["C"], max_iter=500))
    pipeline.fit(values["train"], labels["train"])
    ours = {row["artifact_guid"]: row["probabilities"] for row in made.table.to_pylist()}
    for split in ("valid", "test"):
        guids = datasets.load_from_disk(str(tmp_path / split))["artifact_guid"][:]
        expected = pipeline.predict_proba(values[split])
        assert np.array([ours[guid] for guid in guids]) == pytest.approx(expected, abs=1e-6)
        score = f1_score(labels[split], expected.argmax(axis=1), average="macro")
        assert made.facts["macro_f1"][split] == pytest.approx(score, abs=1e-6)
    assert made.facts["macro_f1"]["test"] > 0.8
    cosines = nearest_train(made.weighted, made.documents.splits)
    assert cosines["test"]["documents"] == 48
    table, found = list_suspects(made.documents, made.probabilities, made.weighted, LABELS)
    assert found["documents"] == table.num_rows


def test_train_documents_are_answered_by_a_model_that_saw_nothing_of_their_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assignment = write(tmp_path, groups=7)
    group_of = dict(zip(assignment.guids, assignment.groups, strict=True))
    train = datasets.load_from_disk(str(tmp_path / "train"))["artifact_guid"][:]
    asked: list[tuple[set[str | None], set[str | None]]] = []
    real = module._answers

    def spy(inputs, labels, fit, rows, strengths, width):  # type: ignore[no-untyped-def]
        if len(rows) and rows.max() < len(train):
            asked.append(({group_of[train[row]] for row in fit}, {group_of[train[row]] for row in rows}))
        return real(inputs, labels, fit, rows, strengths, width)

    monkeypatch.setattr(module, "_answers", spy)
    fitted(tmp_path, assignment)
    assert len(asked) >= 5
    assert all(not seen & answered for seen, answered in asked)


def test_large_train_splits_are_sampled_by_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FITTED", 60)
    monkeypatch.setattr(module, "MAX_CHOOSING", 30)
    made = fitted(tmp_path, write(tmp_path))
    assert (made.facts["documents"], made.facts["of_train_documents"]) == (60, 144)
    assert made.table.num_rows == 240


def test_what_has_no_baseline_says_why(tmp_path: Path) -> None:
    assignment = write(tmp_path, groups=1)
    nothing = "no feature is a list of token ids, and besides ids and masks there is none"
    assert fit_baseline(tmp_path, None, assignment, LABELS) == nothing
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
