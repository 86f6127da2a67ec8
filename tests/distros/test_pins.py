import platform
import zipfile
from pathlib import Path

import pytest

from tests.distros.pins import RECORD, problems, read_lock, read_record, record_pins, supported_versions

VERSIONS = ["3.11", "3.12", "3.13"]


def test_every_pin_has_a_wheel_for_every_python() -> None:
    pins = read_lock("dev")
    assert len(pins) > 200
    assert supported_versions() == VERSIONS
    assert list(problems(pins, read_record(RECORD.read_text(encoding="utf-8")), VERSIONS)) == []


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ("a==1 py3-none cp310-abi3 cp313-cp313", None),
        ("a==2 py3-none py3-none py3-none", "a==1 is not in pins.txt"),
        ("", "a==1 is not in pins.txt"),
        ("a==1 py3-none py3-none", "a==1 has py3-none py3-none in pins.txt, no wheels for Python 3.11, 3.12, 3.13"),
        ("a==1 cp311-cp311 cp312-cp312 cp312-cp312", "a==1 has cp311-cp311 cp312-cp312 cp312-cp312"),
        ("a==1 py2-none py2-none py2-none", "a==1 has py2-none"),
        (
            "a==1 py3-none py3-none py3-none\nb==1 py3-none py3-none py3-none",
            "b==1 is in pins.txt and not in requirements/dev.txt",
        ),
    ],
)
def test_what_the_record_lacks(record: str, found: str | None) -> None:
    said = list(problems(["a==1"], read_record(f"# a comment\n{record}"), VERSIONS))
    assert bool(said) is (found is not None)
    assert found is None or said[0].startswith(found)


def wheel(folder: Path, name: str, tag: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as archive:
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")


def test_pip_is_asked_for_what_the_record_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    wheel(tmp_path, "pure_one", "py2.py3-none-any")
    wheel(tmp_path, "compiled", f"cp311-abi3-linux_{platform.machine()}")
    wheel(tmp_path, "old", "cp311-none-any")
    text = record_pins(
        ["Pure.One==1.0", "compiled==1.0", "known==2"],
        {"known==2": ["x", "y"], "gone==1": ["x", "y"]},
        ["3.11", "3.13"],
    )
    assert text.splitlines()[1:] == [
        "Pure.One==1.0 py3-none py3-none",
        "compiled==1.0 cp311-abi3 cp311-abi3",
        "known==2 x y",
    ]
    with pytest.raises(RuntimeError, match=r"pip finds no wheel for Python 3\.13: (.|\n)*old==1\.0"):
        record_pins(["old==1.0"], {}, ["3.11", "3.13"])
