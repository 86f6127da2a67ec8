"""Which documents are taken: from the table and the task alone, in an order of their own."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from docml_contract.jobs import PrepareTask
from docml_trainer.errors import DataError
from docml_trainer.preparation.documents import Documents, labels_too_small, read_batch, read_documents
from tests.docml_trainer.preparations import Doc, artifacts_table, write_artifacts

BARE = {"artifact_guid": "y", "label": "a", "group": None, "file": None, "path": None, "etag": None}


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
    assert found.paths[0] == [[f"{found.guids[0]}/v1/raw_text.json"]]


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


def test_knobs_count_artifacts_where_units_are_the_documents(tmp_path: Path) -> None:
    pages = [Doc(f"{doc.guid}/{page}", doc.label, "x") for doc in some("a", 12) + some("b", 6) for page in "123"]
    pages += [Doc(f"c-0/{page}", "c", "x") for page in "12345"]
    found = read(tmp_path, pages, num_labels_threshold=2, max_artifacts=9)
    assert found.dropped == {
        "ignored_label": {},
        "below_num_labels_threshold": {"c": 1},
        "over_max_artifacts": {"a": 6, "b": 3},
    }
    assert len(found) == 27
    assert len({guid.split("/")[0] for guid in found.guids}) == 9
    assert labels_too_small(found, (0.8, 0.1, 0.1)) == {}


def test_a_file_that_an_artifact_lacks_has_no_path(tmp_path: Path) -> None:
    docs = [Doc("x", "a", files={"page.png": b"", "raw_text.json": b""}), Doc("y", "a", files={"page.png": b""})]
    found = read(tmp_path, docs, model_input_files=("raw_text.json", "page.png"))
    by_guid = dict(zip(found.guids, found.paths, strict=True))
    assert by_guid == {"x": [["x/v1/raw_text.json"], ["x/v1/page.png"]], "y": [[], ["y/v1/page.png"]]}


def test_a_pattern_gives_all_its_files_in_natural_order(tmp_path: Path) -> None:
    pages = {f"page_{number}.png": b"" for number in (10, 2, 1)}
    docs = [Doc("x", "a", files={**pages, "raw_text.json": b"", "page_1.txt": b""}), Doc("y", "a", "text")]
    found = read(tmp_path, docs, model_input_files=("page_*.png", "page_2.png", "raw_text.json"))
    by_guid = dict(zip(found.guids, found.paths, strict=True))
    assert by_guid == {
        "x": [
            ["x/v1/page_1.png", "x/v1/page_2.png", "x/v1/page_10.png"],
            ["x/v1/page_2.png"],
            ["x/v1/raw_text.json"],
        ],
        "y": [[], [], ["y/v1/raw_text.json"]],
    }


def test_encode_data_gets_paths_lists_and_none_and_only_what_has_to_be_there_is_missing(tmp_path: Path) -> None:
    docs = [Doc("x", "a", files={"page_1.png": b"", "text.json": b""}), Doc("y", "a", files={"text.json": b""})]
    entries = ("page_*.png", "text.json", "words.json")
    path = tmp_path / "artifacts.parquet"
    path.write_bytes(artifacts_table(docs))
    task = PrepareTask(
        model_names=("m",), own_hyperparameters={}, model_input_files=entries, optional_files=("words.json",)
    )
    found = read_documents(path, task)
    read_back = read_batch(found.to_table(range(2)).to_pydict(), task, Path("/channel"), "prefix")
    by_guid = {document.guid: document for document in read_back}
    assert by_guid["x"].files == {
        "page_*.png": [Path("/channel/x/v1/page_1.png")],
        "text.json": Path("/channel/x/v1/text.json"),
        "words.json": None,
    }
    assert by_guid["x"].missing == ()
    assert by_guid["y"].files["page_*.png"] == []
    assert by_guid["y"].missing == ("page_*.png",)


def test_a_document_that_lacks_all_its_files_which_are_optional_is_one_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "artifacts.parquet"
    table = pq.read_table(io.BytesIO(artifacts_table([Doc("x", "a", files={"page_1.png": b""})])))
    bare = pa.table({name: pa.array([value], pa.string()) for name, value in BARE.items()})
    pq.write_table(pa.concat_tables([table, bare]), path)
    task = PrepareTask(
        model_names=("m",),
        own_hyperparameters={},
        model_input_files=("page_*.png",),
        optional_files=("page_*.png",),
    )
    found = read_documents(path, task)
    assert dict(zip(found.guids, found.paths, strict=True)) == {"x": [["x/v1/page_1.png"]], "y": [[]]}


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


def test_a_flipped_bit_in_a_document_is_damage_that_is_named(tmp_path: Path) -> None:
    docs = some("a", 2)
    write_artifacts(tmp_path, docs)
    documents = read(tmp_path, docs)
    task = PrepareTask(model_names=("m",), own_hyperparameters={}, model_input_files=("raw_text.json",))
    batch = documents.to_table(range(2)).to_pydict()
    assert len(read_batch(batch, task, tmp_path, "EXP/data")) == 2
    path = documents.paths[1][0][0]
    content = bytearray((tmp_path / path).read_bytes())
    content[-1] ^= 1
    (tmp_path / path).write_bytes(content)
    with pytest.raises(
        DataError, match=rf"^EXP/data/{path}: .* it is damaged. Remove it from the store and execute the run"
    ):
        read_batch(batch, task, tmp_path, "EXP/data")
