import pytest

from docml_contract.file_names import is_optional, is_pattern, matches, matching


@pytest.mark.parametrize("entry", ["page_*.png", "page_?.png", "page_[12].png"])
def test_an_entry_with_a_wildcard_is_a_pattern(entry: str) -> None:
    assert is_pattern(entry)
    assert matches("page_1.png", entry)
    assert not matches("Page_1.png", entry), "case counts"


def test_a_name_means_itself_only() -> None:
    assert not is_pattern("raw_text.json")
    assert matches("raw_text.json", "raw_text.json")
    assert not matches("raw_text.json.bak", "raw_text.json")


def test_a_file_named_like_the_pattern_itself_is_meant_too() -> None:
    assert matches("page_[12].png", "page_[12].png")


def test_what_a_pattern_matches_comes_in_natural_order() -> None:
    files = ["page_10.png", "page_2.png", "page_1.png", "page_02.png", "cover.png", "page_11b3.png", "page_11b20.png"]
    expected = ["page_1.png", "page_02.png", "page_2.png", "page_10.png", "page_11b3.png", "page_11b20.png"]
    assert matching(files, "page_*.png") == matching(files[::-1], "page_*.png") == expected


def test_an_entry_is_optional_where_files_optional_names_or_covers_it() -> None:
    assert is_optional("page_*.png", ["page_*.png"])
    assert is_optional("page_3.png", ["page_*.png"])
    assert is_optional("page_*.png", ["*.png"])
    assert not is_optional("page_*.png", ["page_3.png"])
    assert not is_optional("raw_text.json", ["page_*.png"])
