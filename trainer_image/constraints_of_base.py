"""What pip installs in an image over a base that has packages of its own: `python constraints_of_base.py lacking|constraints < LOCK`.

`lacking` are the lock's entries, with their hashes, of what the base lacks. What the base has stays as it is wherever the requirements
accept it, so that the base's own tools find the versions that they were tested with; where they do not accept it, our pin is the highest
that may replace it: these are the `constraints`. A newer one is left alone.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import distributions

from pip._vendor.packaging.version import Version  # the one copy that every environment with pip has

_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;\\]+)")


def lacking(lock: Iterable[str], installed: Mapping[str, str]) -> Iterator[str]:
    """The lines of a lock that are about what is not installed. installed: version by normalized name."""
    wanted = False
    for line in lock:
        if (pin := _PIN.match(line)) is not None:
            wanted = normalized(pin[1]) not in installed
        if wanted:
            yield line


def constraints(lock: Iterable[str], installed: Mapping[str, str]) -> Iterator[str]:
    """Lines of a constraints file, without hashes."""
    for name, version in (pin.groups() for line in lock if (pin := _PIN.match(line)) is not None):
        held = installed.get(normalized(name))
        if held is None:
            yield f"{name}=={version}"
        elif Version(held) <= Version(version):
            yield f"{name}<={version}"


def normalized(name: str) -> str:
    """A distribution's name as packages are compared by."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    held = {normalized(found.name): found.version for found in distributions()}
    if sys.argv[1] == "lacking":
        sys.stdout.writelines(lacking(sys.stdin, held))
    else:
        print("\n".join(constraints(sys.stdin, held)))
