"""Which wheel pip takes for each pin of requirements/dev.txt, by Python version: `make lock` keeps pins.txt.

A line is a pin and, for each version that docml supports, the interpreter and ABI of its wheel. `make test` compares it with
that lock and needs no network for that. Only pins without a line are asked for, so that a changed pin takes seconds, all of them some
minutes: pip says which file it would take only after a look into it.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from packaging import tags
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("pins.txt")
REMEDY = "run make lock"


def supported_versions() -> list[str]:
    """The Python versions that pyproject.toml declares, oldest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [
        name.rpartition(" ")[2]
        for name in project["classifiers"]
        if name.startswith("Programming Language :: Python :: 3.")
    ]


def read_lock(name: str) -> list[str]:
    """The pins of a lock that are for this platform."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    entries = [Requirement(line.removesuffix("\\")) for line in lines if not line.startswith((" ", "#"))]
    return [f"{each.name}{each.specifier}" for each in entries if each.marker is None or each.marker.evaluate()]


def read_record(text: str) -> dict[str, list[str]]:
    """Pin -> the tag of its wheel for each version."""
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {pin: wheels for pin, *wheels in lines}


def problems(pins: Sequence[str], record: Mapping[str, Sequence[str]], versions: Sequence[str]) -> Iterator[str]:
    """What the record does not show of these pins: a wheel that fits, for each version; and what it shows of others."""
    fitting = [fitting_tags(version) for version in versions]
    for pin in pins:
        wheels = record.get(pin)
        if wheels is None:
            yield f"{pin} is not in pins.txt: {REMEDY}"
        elif len(wheels) != len(versions) or any(wheel not in fit for wheel, fit in zip(wheels, fitting, strict=True)):
            yield f"{pin} has {' '.join(wheels)} in pins.txt, no wheels for Python {', '.join(versions)}: delete the line, {REMEDY}"
    for pin in record.keys() - set(pins):
        yield f"{pin} is in pins.txt and not in requirements/dev.txt: {REMEDY}"


def fitting_tags(version: str) -> set[str]:
    """Interpreter and ABI of every wheel that CPython of this version can load, whatever the platform."""
    major, minor = map(int, version.split("."))
    name = f"cp{major}{minor}"
    fitting = [
        *tags.cpython_tags((major, minor), [name], ["any"]),
        *tags.compatible_tags((major, minor), name, ["any"]),
    ]
    return {f"{tag.interpreter}-{tag.abi}" for tag in fitting}


def find_wheels(pins: Sequence[str], version: str) -> dict[str, str]:
    """Pin -> the tag of the wheel that pip takes for this version of Python on a machine like this. RuntimeError if one has none."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--quiet", "--disable-pip-version-check", "--dry-run", "--report", str(report), "--target", folder]
        choice = ["--no-deps", "--ignore-installed", "--only-binary", ":all:", "--python-version", version]
        command = [sys.executable, "-m", "pip", "install", *options, *choice, *pins]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr.strip()[-500:]
            raise RuntimeError(f"pip finds no wheel for Python {version}: {said}; choose another version of that pin")
        taken = json.loads(report.read_text(encoding="utf-8"))["install"]
    fitting = fitting_tags(version)
    found = {}
    for one in taken:
        file = unquote(one["download_info"]["url"].rpartition("/")[2])
        name, _, _, wheel_tags = parse_wheel_filename(file)
        found[name] = min({f"{tag.interpreter}-{tag.abi}" for tag in wheel_tags} & fitting)
    return {pin: found[canonicalize_name(pin.partition("==")[0])] for pin in pins}


def record_pins(pins: Sequence[str], record: Mapping[str, Sequence[str]], versions: Sequence[str]) -> str:
    """The text of pins.txt for these pins; pip is asked for those that the record does not know."""
    unknown = [pin for pin in pins if pin not in record]
    found = [find_wheels(unknown, version) for version in versions] if unknown else []
    lines = [f"# pin, then its wheel for Python {', '.join(versions)}; made by make lock"]
    lines += [" ".join([pin, *(record.get(pin) or [wheels[pin] for wheels in found])]) for pin in pins]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    known = read_record(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    RECORD.write_text(record_pins(read_lock("dev"), known, supported_versions()), encoding="utf-8")
