"""What is known of the image from texts: nothing is refused that may be there, and what is surely missing is."""

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from docml_assets.experiment.image_contents import HELD, download_problems, image_problems, installed_packages

ROOT = Path(__file__).parents[3]


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: list[str]) -> set[str]:
    """The packages, and all that they require here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = normalized(waiting.pop())
        if name in found:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        parsed = [Requirement(text) for text in requirements]
        waiting += [each.name for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def test_the_modules_of_the_image_are_those_of_its_requirements() -> None:
    lines = (ROOT / "trainer_image/requirements.txt").read_text().splitlines()
    packages = closure(["torch", *(Requirement(line).name for line in lines if line and not line.startswith("#"))])
    gpu = ("nvidia", "triton", "cuda")  # of a GPU build, which no experiment imports by itself
    modules = {
        module
        for module, owners in metadata.packages_distributions().items()
        if packages & {normalized(owner) for owner in owners} and module.isidentifier() and not module.startswith("_")
    }
    assert {module for module in modules if not module.startswith(gpu)} == HELD


def lacking(folder: Path, functions: str) -> list[tuple[int, str]]:
    problems = image_problems(functions, "user_defined_funcs.py", folder)
    return [(problem.line, problem.found.split()[1].rstrip(",")) for problem in problems]


IMPORTS = """import json
import spacy
from sklearn.base import clone

try:
    import nltk
except ImportError:
    nltk = None

def process_func(artifact, directory):
    import pdf2image

def encode_data(instance, context):
    import cv2
    return cv2
"""


@pytest.mark.parametrize(
    ("dockerfile", "missing"),
    [
        (None, [(2, "spacy"), (14, "cv2")]),
        ("RUN pip install --no-cache-dir spacy==3.8.7", [(14, "cv2")]),
        ("RUN python -m pip install -i https://x/simple 'spacy>=3' && rm -rf /tmp/x", [(14, "cv2")]),
        ("RUN pip install spacy opencv-python-headless", []),
        ("RUN apt-get install -y libgl1 \\\n && pip install spacy", [(14, "cv2")]),
        # What these hold is not known: nothing is said.
        ("RUN pip install spacy opencv-contrib-python", []),
        ("RUN pip install -r requirements.txt", []),
        ("RUN pip install git+https://example.org/spacy", []),
        ("RUN ./install.sh", []),
        ("COPY vendored /usr/lib/python3/site-packages", []),
    ],
)
def test_what_the_image_lacks(tmp_path: Path, dockerfile: str | None, missing: list[tuple[int, str]]) -> None:
    if dockerfile is not None:
        (tmp_path / "sagemaker.Dockerfile").write_text(f"ARG DOCML_BASE\nFROM ${{DOCML_BASE}}\n{dockerfile}\n")
    assert lacking(tmp_path, IMPORTS) == missing


def test_another_base_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "sagemaker.Dockerfile").write_text("FROM my/image:1\n")
    assert installed_packages(tmp_path) is None
    assert lacking(tmp_path, IMPORTS) == []


@pytest.mark.parametrize(
    ("call", "is_download"),
    [
        ("AutoModel.from_pretrained('bert-base-uncased')", True),
        ("snapshot_download('org/model', revision='main')", True),
        ("AutoModel.from_pretrained('/opt/model')", False),
        ("AutoModel.from_pretrained('org/model', local_files_only=True)", False),
        ("AutoModel.from_pretrained(encoder.path)", False),
    ],
)
def test_downloads_are_found(tmp_path: Path, call: str, is_download: bool) -> None:
    assert bool(download_problems(f"def load_model(a, b):\n    return {call}\n", "f", tmp_path)) is is_download


def test_an_image_that_brings_the_files_downloads_nothing(tmp_path: Path) -> None:
    (tmp_path / "sagemaker.Dockerfile").write_text("FROM ${DOCML_BASE}\nENV HF_HUB_OFFLINE=1\n")
    assert download_problems("m = f.from_pretrained('org/model')\n", "f", tmp_path) == []
