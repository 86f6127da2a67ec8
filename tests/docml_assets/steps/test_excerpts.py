"""The beginning of a document's text."""

import json

import pytest

from docml_assets.steps.excerpts import LENGTH, excerpts, text_of
from docml_assets.steps.reconciliation import reconciliation
from tests.docml_assets.world import World


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            json.dumps({"id": "abc", "text": "a sentence of some length\nand more"}).encode(),
            "a sentence of some length and more",
        ),
        (
            json.dumps({"pages": [{"words": "the first page of a letter"}, "the second page of it"]}).encode(),
            "the first page of a letter the second page of it",
        ),
        (b"plain  text\nas it is", "plain text as it is"),
        (b"\x89PNG\xff", ""),
        (b"[1, 2]", ""),
    ],
)
def test_text_is_found_in_json_and_in_plain_files(content: bytes, text: str) -> None:
    assert text_of(content) == text


def test_a_document_is_found_by_its_guid(world: World) -> None:
    long = world.root / "production" / "doc-01" / "raw_text.json"
    long.write_text(json.dumps({"text": "word " * 200}))
    world.write_experiment()
    work = world.work(world.claim(1))
    reconciliation(work)
    excerpt = excerpts(work)
    assert excerpt("doc-00").startswith("the text of doc-00")
    assert len(excerpt("doc-01")) == LENGTH
    assert excerpt("nobody") == ""
