from pathlib import Path

from docs.make_settings import reference

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_documentation_is_the_key_table() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == reference(), (
        "docs/settings.md differs from the key table; run: python docs/make_settings.py > docs/settings.md"
    )
