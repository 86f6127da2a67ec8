"""docs/statistics.md names every number of report.json, and tests that exist."""

import re
import typing
from collections.abc import Iterator
from pathlib import Path

from docml_assets.report.schema import Report
from docml_contract.base import Document

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/statistics.md").read_text()
NO_STATISTIC = {  # identities, texts and counts that explain themselves
    "schema_version", "experiment", "run", "num_test", "labels", "models", "comparison", "label", "summary", "warnings", "a", "b",
    "torchscript_sha256", "comparisons", "pairs", "policy",
}  # fmt: skip


def fields(model: type[Document]) -> Iterator[str]:
    """Names of all fields, of nested documents too."""
    for name, field in model.model_fields.items():
        yield name
        for inner in parts(field.annotation):
            yield from fields(inner)


def parts(annotation: object) -> Iterator[type[Document]]:
    if isinstance(annotation, type) and issubclass(annotation, Document):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from parts(inner)


def test_every_number_has_its_definition() -> None:
    named = set(re.findall(r"`(\w+)`", TEXT))
    assert set(fields(Report)) - NO_STATISTIC - named == set()


def test_every_named_test_exists() -> None:
    found = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert found
    for path, name in found:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
