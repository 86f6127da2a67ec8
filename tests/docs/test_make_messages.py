from pathlib import Path

import pytest

from docs.make_messages import document, sentences

DOCUMENT = Path(__file__).parents[2] / "docs" / "messages.md"


def test_the_document_is_what_the_code_says() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), (
        "docs/messages.md differs from the code; run: python docs/make_messages.py > docs/messages.md"
    )


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ('raise ValueError(f"{path}: no such file; restore it")', ["{…}: no such file; restore it"]),
        ('say("3 of them" " were left out here")', ["3 of them were left out here"]),
        ('"""What the module is for, at length."""\nx = "SELECT a FROM b WHERE c"\ny = "a_b c_d"', []),
        ('@click.command()\ndef show():\n    """Show what there is to see."""', ["Show what there is to see."]),
        ('def show():\n    """Show what there is to see."""', []),
    ],
)
def test_what_counts_as_said(source: str, told: list[str]) -> None:
    assert list(sentences(source)) == told
