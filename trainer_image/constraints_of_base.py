"""Constraints for pip in an image over a base that has packages of its own: `python constraints_of_base.py < constraints.txt`.

What the base lacks is pinned. What it has stays as it is wherever the requirements accept it, so that the base's own tools find the
versions that they were tested with; where they do not accept it, our pin is the highest that may replace it. A newer one is left alone.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import distributions

from pip._vendor.packaging.version import Version  # the one copy that every environment with pip has


def constraints(pins: Iterable[str], installed: Mapping[str, str]) -> Iterator[str]:
    """Lines of a constraints file. pins: lines name==version; installed: version by normalized name."""
    for line in map(str.strip, pins):
        name, _, version = line.partition("==")
        held = installed.get(normalized(name))
        if held is None:
            yield line
        elif Version(held) <= Version(version):
            yield f"{name}<={version}"


def normalized(name: str) -> str:
    """A distribution's name as packages are compared by."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    held = {normalized(found.name): found.version for found in distributions()}
    print("\n".join(constraints(sys.stdin, held)))
