"""No cell of the fault matrix is empty, and what it names exists."""

import ast
from pathlib import Path

from tests.faults.matrix import AXES, CONTENT, cells

ROOT = Path(__file__).parents[2]


def names_of(path: Path) -> set[str]:
    """The names of a file's tests, those of classes included."""
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in found if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_cell_has_a_test_or_a_reason() -> None:
    assert len(cells()) == 10 * 5 * 5 + 7 * len(CONTENT["files"])
    assert not [cell.place for cell in cells() if cell.rule is None]


def test_every_rule_covers_a_cell_with_a_test_that_exists_or_a_sentence() -> None:
    used = {(cell.kind, cell.rule) for cell in cells()}
    for kind, axes in AXES.items():
        for number, rule in enumerate(CONTENT[kind]):
            assert (kind, number) in used, f"no cell is left for {rule}"
            assert not rule.keys() - {*axes, "test", "why"}
            for axis in axes:
                assert not set(rule.get(axis, ())) - set(CONTENT[axis]), rule
            if "why" in rule:
                assert "test" not in rule
                assert rule["why"].endswith(".")
                assert len(rule["why"].split()) > 5
                continue
            file, _, name = rule["test"].partition("::")
            assert name in names_of(ROOT / file), f"{rule['test']} does not exist"
