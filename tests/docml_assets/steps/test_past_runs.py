"""What a run changed from the one before it."""

from docml_assets.steps.past_runs import describe_documents


def test_documents_and_labels_are_counted() -> None:
    older = {"a": ("x", "train"), "b": ("x", "valid"), "c": ("y", "test"), "gone": ("y", "train")}
    newer = {"a": ("y", "train"), "b": ("x", "valid"), "c": ("x", "test"), "new": ("y", "train"), "d": ("x", "test")}
    assert describe_documents(older, newer) == ["2 documents more", "1 document fewer", "2 labels (1 train, 1 test)"]
    assert list(describe_documents(older, dict(older))) == []
    assert list(describe_documents(None, newer)) == []
