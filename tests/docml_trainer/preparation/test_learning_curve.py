"""The baseline's learning curve: parts, forecasts, and what is said where there is too little."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import f1_score

from docml_trainer.preparation.baseline import Baseline, answer, fit_documents
from docml_trainer.preparation.baseline_inputs import EncodedDocuments
from docml_trainer.preparation.learning_curve import draw_parts, estimate_curve

NAMES = ("invoice", "letter", "memo")


def documents(count: int) -> EncodedDocuments:
    random = np.random.default_rng(1)
    labels = np.arange(count) % 3
    tokens = [np.where(random.random(30) < 0.1, 40 + label, random.integers(0, 40, 30)) for label in labels]
    splits = ["train" if row % 4 else ("valid", "test")[row % 8 // 4] for row in range(count)]
    guids = [f"doc-{row:04d}" for row in range(count)]
    return EncodedDocuments(
        guids, labels.astype(np.int64), splits, np.concatenate(tokens), 30 * np.arange(1, count + 1)
    )


def fit(count: int) -> Baseline:
    made = fit_documents(documents(count), np.arange(count), NAMES)
    assert isinstance(made, Baseline), made
    return made


def test_parts_of_a_size_do_not_overlap_and_have_the_labels_shares() -> None:
    labels = np.repeat([0, 1, 2], [200, 100, 20])
    whole, *parts = draw_parts(np.arange(320), labels)
    assert len(whole) == 320
    assert [len(part) for part in parts] == [160] * 2 + [80] * 4 + [40] * 8
    for size in (160, 80, 40):
        same = np.concatenate([part for part in parts if len(part) == size])
        assert len(np.unique(same)) == len(same) == 320
    for part in parts:
        assert np.abs(np.bincount(labels[part], minlength=3) / len(part) - [0.625, 0.3125, 0.0625]).max() < 0.02


def test_every_point_is_a_fit_on_a_part() -> None:
    made = fit(320)
    curve = estimate_curve(made, NAMES)
    asked = np.flatnonzero([split != "train" for split in made.documents.splits])
    parts = draw_parts(made.fitted, made.documents.labels)
    assert [size for size, _ in curve["points"]] == [len(part) for part in parts]
    for row in (0, 1, 4):
        (said,) = answer(made.inputs, made.documents.labels, [(parts[row], asked)], [made.facts["C"]], 3)
        expected = f1_score(made.documents.labels[asked], said.probabilities[0].argmax(axis=1), average="macro")
        assert curve["points"][row][1] == pytest.approx(expected, abs=1e-6)
    assert curve["documents"] == 2 * len(made.fitted) == 480
    assert curve["labels"].keys() == set(NAMES)
    low, high = curve["f1_macro"]["interval80"]
    assert low <= curve["f1_macro"]["forecast"] <= high


def test_what_cannot_be_estimated_says_why() -> None:
    assert estimate_curve(fit(36), NAMES) == {"none": "27 train documents are too few to fit on parts of them"}
    made = fit(80)
    alone = EncodedDocuments(
        made.documents.guids, made.documents.labels, ["train"] * 80, made.documents.tokens, made.documents.ends
    )
    empty = Baseline(pa.table({}), {}, alone, made.probabilities, made.inputs, np.arange(80))
    assert estimate_curve(empty, NAMES) == {"none": "there are no validation and test documents"}
