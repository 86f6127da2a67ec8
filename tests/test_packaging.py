"""What ships: the wheel holds the data files and works outside the checkout; locks name what is installed."""

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.distros.pins import read_lock

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run([*command, "--wheel-dir", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("docml-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, as pip would lay it out."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def tracked(*paths: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_the_wheel_holds_every_file_of_the_packages(installed: Path) -> None:
    packages = ("docml_assets", "resources", "trainer_image/docml_contract", "trainer_image/docml_trainer")
    for name in tracked(*packages):
        shipped = installed / name.removeprefix("trainer_image/")
        assert shipped.is_file(), name
    for name in ("docml_assets/dagster.yaml", "docml_assets/sample/labels.sqlite", "docml_contract/py.typed"):
        assert (installed / name).is_file()
    assert len(list((installed / "docml_assets/sample/artifacts").glob("*/raw_text.json"))) == 152


def test_the_wheel_holds_nothing_else(installed: Path) -> None:
    packages = {"docml_assets", "resources", "docml_contract", "docml_trainer"}
    assert {path.name for path in installed.iterdir()} == {*packages, "docml-0.1.0.dist-info"}
    assert not list(installed.rglob("__pycache__"))
    assert (installed / "docml-0.1.0.dist-info/licenses/LICENSE").is_file()


def test_the_command_line_works_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("DOCML_", "DAGSTER_"))}
    # -P and -c: neither the working folder nor the script's is on the path; the checkout's editable finder comes later.
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); sys.argv[0] = 'docml'\n"
        f"import docml_assets.cli as cli; assert cli.__file__.startswith({str(installed)!r}), cli.__file__\n"
        "cli.main()"
    )
    for arguments in (["--help"], ["new", "EXP-7-wheel"], ["validate", "EXP-7-wheel"], ["runs"]):
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            cwd=tmp_path,
            env=clean,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    assert (tmp_path / "experiments/EXP-7-wheel/settings.ini").is_file()


def test_what_is_installed_is_what_the_lock_pins() -> None:
    # Both are normal names; a local label, as in torch 2.13.0+cpu, tells where a build comes from, not its version.
    pinned = dict(pin.split("==") for pin in read_lock("dev"))
    installed = {canonicalize_name(d.name): d.version.partition("+")[0] for d in metadata.distributions()}
    differing = {name: (installed[name], pinned[name]) for name in installed.keys() & pinned.keys()}
    assert {name: pair for name, pair in differing.items() if pair[0] != pair[1]} == {}


@pytest.mark.parametrize(
    ("lock", "asked"),
    [
        ("dev", ["docml[dev]"]),
        ("demo", ["docml[build,demo]"]),
        ("orchestrator", ["docml[aws,build]"]),
        ("trainer", (ROOT / "trainer_image/requirements.txt").read_text(encoding="utf-8").splitlines()),
    ],
)
def test_a_lock_covers_all_that_is_required(lock: str, asked: list[str]) -> None:
    # pip installs it without a look at what its packages require.
    wanted = [Requirement(text) for text in asked if not text.startswith("#")]
    seen: set[tuple[str, str]] = set()
    while wanted:
        found = wanted.pop()
        name = canonicalize_name(found.name)
        for extra in {"", *found.extras} - {extra for each, extra in seen if each == name}:
            seen.add((name, extra))
            if name != "torch":  # which comes from an index of the user's own
                needed = map(Requirement, metadata.requires(name) or ())
                wanted += [each for each in needed if each.marker is None or each.marker.evaluate({"extra": extra})]
    assert {name for name, _ in seen} - {pin.split("==")[0] for pin in read_lock(lock)} <= {"docml", "torch"}


def test_locks_say_the_same_and_pin_everything_by_hash() -> None:
    dev = set(read_lock("dev"))
    for path in (ROOT / "requirements").iterdir():
        assert set(read_lock(path.stem)) <= dev, path
        text = path.read_text(encoding="utf-8")
        assert "://" not in text, "whoever installs chooses the index"
        entries = re.split(r"\n(?=\S)", re.sub("^#.*\n", "", text, flags=re.MULTILINE).strip())
        assert len(entries) > 100
        assert all("--hash=sha256:" in entry for entry in entries)


def test_the_orchestrator_needs_no_torch() -> None:
    plain = [text for text in metadata.requires("docml") or () if "extra ==" not in text]
    aws = [text for text in metadata.requires("docml") or () if 'extra == "aws"' in text or "extra == 'aws'" in text]
    assert plain
    assert aws
    names = {canonicalize_name(re.split(r"[^A-Za-z0-9._-]", text)[0]) for text in [*plain, *aws]}
    assert not names & {"torch", "transformers", "datasets", "accelerate", "evaluate", "wandb"}


def test_the_images_install_by_hash_as_well() -> None:
    for name in ("deploy/Dockerfile", "trainer_image/Dockerfile"):
        assert "pip install --require-hashes --no-deps --only-binary :all: --requirement" in re.sub(
            " --no-cache-dir", "", (ROOT / name).read_text(encoding="utf-8")
        )
