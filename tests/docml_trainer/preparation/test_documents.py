"""Which documents are taken: from the table and the task alone, in an order of their own."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from docml_contract.jobs import PrepareTask
from docml_trainer.errors import DataError
from docml_trainer.preparation.documents import Documents, labels_too_small, read_documents
from tests.docml_trainer.preparations import Doc, artifacts_table


def read(tmp_path: Path, docs: list[Doc], **task: object) -> Documents:
    path = tmp_path / "artifacts.parquet"
    path.write_bytes(artifacts_table(docs))
    settings = {"model_names": ("m",), "own_hyperparameters": {}, "model_input_files": ("raw_text.json",), **task}
    return read_documents(path, PrepareTask.model_validate(settings))


def some(label: str, count: int) -> list[Doc]:
    return [Doc(f"{label}-{index}", label, "x") for index in range(count)]


def test_the_order_does_not_depend_on_the_tables(tmp_path: Path) -> None:
    docs = some("a", 20) + some("b", 20)
    found = read(tmp_path, docs)
    assert found == read(tmp_path, docs[::-1])
    assert found.guids != sorted(found.guids)
    assert found.label_names == ("a", "b")
    assert found.paths[0] == [f"{found.guids[0]}/v1/raw_text.json"]


def test_parts_are_contiguous_whole_and_alike(tmp_path: Path) -> None:
    found = read(tmp_path, some("a", 11))
    parts = [found.part(index, 4) for index in range(4)]
    assert [position for part in parts for position in part] == list(range(11))
    assert {len(part) for part in parts} == {2, 3}


def test_knobs(tmp_path: Path) -> None:
    docs = some("a", 12) + some("b", 6) + some("c", 2) + some("d", 9)
    found = read(tmp_path, docs, ignored_labels=("d", "unheard-of"), num_labels_threshold=3, max_artifacts=9)
    assert found.label_names == ("a", "b")
    assert [found.labels.count(label) for label in "ab"] == [6, 3]
    assert found.dropped == {
        "ignored_label": {"d": 9},
        "below_num_labels_threshold": {"c": 2},
        "over_max_artifacts": {"a": 6, "b": 3},
    }
    assert len(read(tmp_path, docs, max_artifacts=10)) == 10
    capped = set(read(tmp_path, docs, max_artifacts=10).guids)
    assert capped <= set(read(tmp_path, docs, max_artifacts=20).guids)


def test_a_file_that_an_artifact_lacks_is_none(tmp_path: Path) -> None:
    docs = [Doc("x", "a", files={"page.png": b"", "raw_text.json": b""}), Doc("y", "a", files={"page.png": b""})]
    found = read(tmp_path, docs, model_input_files=("raw_text.json", "page.png"))
    by_guid = dict(zip(found.guids, found.paths, strict=True))
    assert by_guid == {"x": ["x/v1/raw_text.json", "x/v1/page.png"], "y": [None, "y/v1/page.png"]}


def test_labels_too_small_count_independent_documents(tmp_path: Path) -> None:
    docs = [*some("a", 3), *some("b", 2), *(Doc(f"c{index}", "c", "x", group="one") for index in range(9))]
    assert labels_too_small(read(tmp_path, docs), (0.8, 0.1, 0.1)) == {"b": 2, "c": 1}
    assert labels_too_small(read(tmp_path, docs), (0.8, 0.2, 0)) == {"c": 1}


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no document is left of 3"):
        read(tmp_path, some("a", 3), num_labels_threshold=4)
    with pytest.raises(DataError, match="artifact x has labels 'a' and 'b'"):
        read(tmp_path, [Doc("x", "a", "t"), Doc("x", "b", "t")])
    with pytest.raises(DataError, match="no such file"):
        read_documents(
            tmp_path / "none.parquet", PrepareTask(model_names=("m",), own_hyperparameters={}, model_input_files=())
        )
    pq.write_table(pa.table({"artifact_guid": ["x"]}), tmp_path / "odd.parquet")
    with pytest.raises(DataError, match="expected also"):
        read_documents(
            tmp_path / "odd.parquet", PrepareTask(model_names=("m",), own_hyperparameters={}, model_input_files=())
        )
