"""The fault matrix: the cells of matrix.toml, each with the rule that covers it."""

import tomllib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("matrix.toml")
CONTENT: dict[str, Any] = tomllib.loads(TABLE.read_text(encoding="utf-8"))
AXES = {"signal": ("processes", "signals", "steps"), "damage": ("faults", "files")}


@dataclass(frozen=True)
class Cell:
    """A place in the matrix. rule: the number of the one that covers it, None where there is none."""

    kind: str
    place: tuple[str, ...]
    rule: int | None

    @property
    def test(self) -> str | None:
        """The test that shows what happens here."""
        found: str | None = None if self.rule is None else CONTENT[self.kind][self.rule].get("test")
        return found


def cells() -> list[Cell]:
    """All of them."""
    found = []
    for kind, axes in AXES.items():
        for place in product(*(CONTENT[axis] for axis in axes)):
            rules = enumerate(CONTENT[kind])
            covering = (number for number, rule in rules if _covers(rule, axes, place))
            found.append(Cell(kind, place, next(covering, None)))
    return found


def played_by(test: str) -> list[tuple[str, ...]]:
    """The places that a test has to show."""
    return [cell.place for cell in cells() if cell.test and cell.test.endswith(f"::{test}")]


def _covers(rule: dict[str, Any], axes: tuple[str, ...], place: tuple[str, ...]) -> bool:
    return all(value in rule.get(axis, (value,)) for axis, value in zip(axes, place, strict=True))
