from docml_contract.units import (
    artifact_of,
    by_artifact,
    document_guid,
    files_of_unit,
    mean,
    most_frequent,
    split_guid,
    units_in,
)

FILES = ["page_10.png", "page_2.png", "page_2.json", "raw_text.json", "notes.txt"]
ENTRIES = ["raw_text.json", "page_*.png", "page_*.json"]


def test_a_unit_is_what_files_of_patterns_are_called() -> None:
    assert units_in(FILES, ENTRIES) == ["page_2", "page_10"]
    assert units_in(FILES, ["raw_text.json"]) == []
    assert files_of_unit(FILES, ENTRIES, "page_2") == ["page_2.png", "page_2.json", "raw_text.json"]
    assert files_of_unit(FILES, ENTRIES, "page_10") == ["page_10.png", "raw_text.json"]


def test_a_document_is_an_artifact_or_a_unit_of_one() -> None:
    assert document_guid("a", None) == "a"
    assert document_guid("a", "p/1") == "a/p/1"
    assert split_guid("a") == ("a", None)
    assert split_guid("a/p/1") == ("a", "p/1")
    assert artifact_of("a/p") == artifact_of("a") == "a"
    assert by_artifact(["b/1", "a", "b/2"]) == {"b": [0, 2], "a": [1]}


def test_mean_and_most_frequent() -> None:
    assert mean([[0.25, 0.75], [0.75, 0.25], [0.5, 0.5]]) == [0.5, 0.5]
    assert most_frequent(["b", "a", "a"]) == "a"
    assert most_frequent(["b", "a"]) == "b"
