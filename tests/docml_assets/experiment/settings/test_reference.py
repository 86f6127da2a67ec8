from pathlib import Path

from docml_assets.experiment.settings.reference import reference

DOCUMENT = Path(__file__).parents[4] / "docs" / "settings.md"


def test_the_documentation_is_the_key_table() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == reference(), (
        "docs/settings.md differs from the key table; run: python -m docml_assets.experiment.settings.reference > docs/settings.md"
    )
