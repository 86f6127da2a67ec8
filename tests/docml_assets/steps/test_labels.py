"""Which documents to label next, and the tasks of a labelling tool."""

import numpy as np
import pyarrow as pa

from docml_assets.steps.labels import choose_next, label_studio_tasks, newest_answers


def table(*probabilities: list[float] | None) -> pa.Table:
    return pa.table({"probabilities": pa.array(probabilities, pa.list_(pa.float32()))})


def test_doubtful_documents_that_differ_are_chosen_first() -> None:
    sure = [[0.98, 0.01, 0.01]] * 50
    ab, bc = [0.5, 0.49, 0.01], [0.01, 0.5, 0.49]
    found = choose_next(table(*sure, ab, ab, None, bc, ab), 2)
    assert found.tolist() == [50, 53]  # one of each border, though three lie on the first
    assert choose_next(table(*sure, ab, None), 1).tolist() == [50]


def test_no_more_than_there_are() -> None:
    assert choose_next(table([0.5, 0.5], [0.6, 0.4]), 9).tolist() == [0, 1]
    assert choose_next(table(None, None), 3).tolist() == []
    assert choose_next(table([1.0], [1.0]), 1).tolist() == [0]
    many = np.random.default_rng(1).dirichlet([1, 1, 1], 400)
    found = choose_next(table(*many.tolist()), 30)
    assert len(set(found.tolist())) == 30


def test_the_newest_answer_of_a_document_counts_and_an_error_hides_none() -> None:
    newest, older = table([0.9, 0.1], None), table([0.4, 0.6], [0.2, 0.8], None)
    found = newest_answers(
        [
            newest.append_column("artifact_guid", pa.array(["b", "a"])),
            older.append_column("artifact_guid", pa.array(["b", "a", "c"])),
        ]
    )
    assert [(row["artifact_guid"], round(row["probabilities"][0], 1)) for row in found.to_pylist()] == [
        ("a", 0.2),
        ("b", 0.9),
    ]


def test_label_studio_reads_the_likely_label_as_a_prediction() -> None:
    (task,) = label_studio_tasks(
        [{"artifact_guid": "a", "label": "x", "likely_label": "y", "likely_probability": 0.8, "excerpt": "the text"}]
    )
    assert task["data"] == {
        "text": "the text",
        "artifact_guid": "a",
        "label": "x",
        "likely_label": "y",
        "likely_probability": 0.8,
    }
    (prediction,) = task["predictions"]
    assert prediction["score"] == 0.8
    assert prediction["result"][0]["value"] == {"choices": ["y"]}
