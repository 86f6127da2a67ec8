"""What the baseline costs: time and memory at 1,000, 20,000 and 200,000 documents of 500 words, and its share of a preparation.

Everything that preparation does for it counts: terms, the strength of the penalty, five folds, the fit, label suspects, the learning curve,
and how near documents are to train's. The peer is one fit of scikit-learn's own pipeline (TfidfVectorizer over the same terms, LogisticRegression
of the same strength) on the same documents, whose scores have to be equal. Each is a process of its own. The share is that of the whole job
`python -m docml_trainer prepare`, with and without BASELINE, on the documents of bench/prepare.py (goal: a tenth).

    python -m bench.baseline ours|scikit-learn FOLDER    measures one of them on documents that lie there
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from bench import prepare
from docml_trainer.preparation import baseline_inputs
from docml_trainer.preparation.baseline import MAX_FITTED, MAX_ROTATED, Baseline, _sample, fit_documents, regression
from docml_trainer.preparation.baseline_inputs import EncodedDocuments
from docml_trainer.preparation.learning_curve import estimate_curve
from docml_trainer.preparation.near_duplicates import nearest_train
from docml_trainer.preparation.suspects import list_suspects

SIZES = (1_000, 20_000, 200_000)
OWN = 1 / 2  # of a document's passages are of its label
OURS, PEER = "ours", "scikit-learn"


def run() -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="docml-bench-") as scratch:
        for size in SIZES:
            folder = Path(scratch) / str(size)
            write_documents(folder, size)
            rows += compare(f"{size:,} documents", {who: measure(who, folder) for who in (OURS, PEER)})
    return [*rows, share_of_preparation()]


def write_documents(folder: Path, count: int) -> None:
    """Word ids of passages of 20 Newsgroups, half of them of the document's label and half of any, so that not every score is 1."""
    draw = random.Random(13)
    words: dict[str, int] = {}
    by_label = {
        label: [[words.setdefault(word, len(words)) for word in text] for text in texts]
        for label, texts in sorted(prepare._passages().items())
    }
    labels, tokens = sorted(by_label), np.zeros((count, prepare.WORDS), dtype=np.int32)
    for row in range(count):
        found: list[int] = []
        while len(found) < prepare.WORDS:
            passage = draw.choice(by_label[labels[row % len(labels)] if draw.random() < OWN else draw.choice(labels)])
            start = draw.randrange(max(1, len(passage) - 80))
            found += passage[start : start + 100]
        tokens[row] = found[: prepare.WORDS]
    folder.mkdir()
    np.savez(folder / "documents.npz", tokens=tokens.reshape(-1), labels=np.arange(count) % len(labels))


def read_documents(folder: Path) -> EncodedDocuments:
    """With splits of 80, 10 and 10 %."""
    with np.load(folder / "documents.npz") as stored:
        tokens, labels = stored["tokens"], stored["labels"]
    splits = np.array(["train"] * 8 + ["valid", "test"], dtype=object)
    order = np.random.default_rng(0).permutation(len(labels))
    return EncodedDocuments(
        guids=[f"document-{row:06d}" for row in range(len(labels))],
        labels=labels,
        splits=splits[order % len(splits)].tolist(),
        tokens=tokens,
        ends=np.arange(1, len(labels) + 1) * prepare.WORDS,
    )


def measure(who: str, folder: Path) -> dict[str, Any]:
    """What a process of its own says: seconds, megabytes and scores."""
    command = [sys.executable, "-m", "bench.baseline", who, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(who, folder.name, found, flush=True)
    return found


def ours(folder: Path) -> dict[str, Any]:
    """Everything that a preparation does for the baseline, but reading the documents and writing tables."""
    documents = read_documents(folder)
    names = [f"label {number:02d}" for number in range(int(documents.labels.max()) + 1)]
    started = time.monotonic()
    parts = {}

    def lap(part: str, since: float) -> float:
        parts[part] = round(time.monotonic() - since, 1)
        return time.monotonic()

    made = fit_documents(documents, np.arange(len(documents.guids)), names)
    assert isinstance(made, Baseline), made
    at = lap("fits", started)
    list_suspects(documents, made.probabilities, made.weighted, names, made.chance)
    at = lap("suspects", at)
    estimate_curve(made, names)
    at = lap("learning curve", at)
    nearest_train(made.weighted, documents.splits)
    lap("nearness", at)
    seconds = time.monotonic() - started
    predicted, splits, scores = made.probabilities.argmax(axis=1), np.array(documents.splits), {}
    for split in ("valid", "test"):  # as facts have them, to the last digit
        asked = splits == split
        scores[split] = f1_score(documents.labels[asked], predicted[asked], average="macro")
    facts = {name: made.facts[name] for name in ("documents", "terms", "rarest", "hashed", "C")}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return {"seconds": seconds, **facts, "exact_f1": scores, "parts": parts}


def scikit_learn(folder: Path) -> dict[str, Any]:
    """One fit of its pipeline on the documents that ours was fitted on, with the strength that ours chose."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    documents, facts = read_documents(folder), json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    rows = documents.tokens.reshape(len(documents.guids), -1)
    splits = np.array(documents.splits)
    fitted = _sample(np.flatnonzero(splits == "train"), documents, MAX_FITTED)
    started = time.monotonic()
    vectorizer = TfidfVectorizer(
        analyzer=_hashed_terms if facts["hashed"] else _terms,
        sublinear_tf=True,
        min_df=facts["rarest"],
        dtype=np.float64 if len(fitted) <= MAX_ROTATED else np.float32,
    )
    pipeline = make_pipeline(vectorizer, regression(facts["C"], len(fitted), terms=True))
    pipeline.fit(rows[fitted], documents.labels[fitted])
    scores = {}
    for split in ("valid", "test"):
        asked = np.flatnonzero(splits == split)
        scores[split] = f1_score(documents.labels[asked], pipeline.predict(rows[asked]), average="macro")
    return {"seconds": time.monotonic() - started, "terms": len(vectorizer.vocabulary_), "macro_f1": scores}


def _terms(row: Any) -> list[Any]:
    return [*zip(row.tolist(), strict=True), *pairwise(row.tolist())]


def _hashed_terms(row: Any) -> list[int]:
    """The buckets of a document's terms, so that both share them in the same way."""
    codes, _ = baseline_inputs.code_terms([row])
    return baseline_inputs.bucket_of(codes).tolist()


def compare(about: str, found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one size."""
    mine, theirs = found[OURS], found[PEER]
    fitted = f"{about} ({mine['documents']:,} fitted)"
    worst = max(abs(mine["exact_f1"][split] - theirs["macro_f1"][split]) for split in ("valid", "test"))
    return [
        _row(f"all of the baseline, {fitted}", "s", mine["seconds"], {"scikit-learn, one fit": theirs["seconds"]}),
        _row(f"memory, {fitted}", "MB", mine["megabytes"], {"scikit-learn, one fit": theirs["megabytes"]}),
        _row(f"largest difference of macro-F1 from scikit-learn's, {fitted}", "macro-F1", worst, {}),
    ]


def share_of_preparation() -> dict[str, Any]:
    """The time of the same job with the baseline and without."""
    work = prepare.CACHE / "prepare"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        table = prepare._write_documents(work / "artifacts")
        seconds = {}
        for wanted in (False, True):
            seconds[wanted], _, _ = prepare._ours(
                work / f"job-{wanted}", work / "artifacts", table, prepare.ENCODE_DATA, baseline=wanted
            )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"preparation of {prepare.DOCUMENTS:,} documents: {seconds}", flush=True)
    share = seconds[True] / seconds[False] - 1
    return _row(f"time beyond that of a preparation without it, {prepare.DOCUMENTS:,} documents", "share", share, {})


def _row(metric: str, unit: str, value: float, peers: dict[str, float]) -> dict[str, Any]:
    rounded = {name: round(figure, 1) for name, figure in peers.items()}
    return {
        "bench": "baseline",
        "metric": metric,
        "unit": unit,
        "ours": round(value, 12 if unit == "macro-F1" else 2),
        "peers": rounded,
        "ratio": None,
    }


if __name__ == "__main__":
    said = {OURS: ours, PEER: scikit_learn}[sys.argv[1]](Path(sys.argv[2]))
    status = Path("/proc/self/status").read_text(
        encoding="ascii"
    )  # ru_maxrss would be the parent's, where that was larger
    said["megabytes"] = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps(said))
