"""Labels that look wrong, beside cleanlab: 4, 8 and 16 % of the labels of three real sets are made wrong, at random or between labels
that the baseline confuses most; in parts of 600 documents, of which several are drawn, and in whole sets.

Both get the same probabilities: the baseline's, out of sample. Ours lists as many documents as it estimates to be wrong; cleanlab's list
(`find_label_issues`, its default, by self-confidence) is cut or prolonged to that length, and judged at its own length as well. Figures are means
over the draws. The sets have wrong labels of their own, which count as false alarms for both; what each set is estimated at before any label is
made wrong stands in a row of its own, and by how much more it is estimated at afterwards in another.
"""

import subprocess
import sys
from typing import Any

import numpy as np

from bench._texts import CACHE, encode, read_set
from docml_trainer.preparation.baseline import Baseline, fit_documents
from docml_trainer.preparation.baseline_inputs import EncodedDocuments, Ids
from docml_trainer.preparation.suspects import bound_share, rank_suspects

CLEANLAB = "cleanlab==2.9.0"
SHARES = (0.04, 0.08, 0.16)
KINDS = ("at random", "most confused")
SETTINGS = (  # set, documents at most, draws of documents and of mistakes
    ("bundled", 600, 5),
    ("newsgroups", 600, 4),
    ("licences", 600, 4),
    ("licences", 100_000, 3),
    ("newsgroups", 100_000, 1),
)


def run() -> list[dict[str, Any]]:
    install_cleanlab()
    return [row for name, most, draws in SETTINGS for row in compare_set(name, most, draws)]


def compare_set(name: str, most: int, draws: int) -> list[dict[str, Any]]:
    """Rows of one set."""
    found: dict[str, list[dict[str, float]]] = {}
    at_first, size = [], 0
    for draw in range(draws):
        texts, labels = read_set(name, most, draw)
        size, documents = len(texts), encode(texts, labels)
        clean = fit(documents, documents.labels)
        at_first.append(len(rank_suspects(documents.labels, clean.probabilities).rows) / size)
        for kind in KINDS:
            for share in SHARES:
                figures = compare(documents, flip(clean, share, kind, draw), at_first[-1])
                found.setdefault(f"{share:.0%} {kind}", []).append(figures)
    about = f"{name}, {size:,} documents"
    rows = [_row(f"estimated share with no label made wrong, {about}", "points", 100 * float(np.mean(at_first)), {})]
    for setting, of_draws in found.items():
        figures = {key: float(np.mean([each[key] for each in of_draws])) for key in of_draws[0]}
        print(f"{about}, {setting}: {figures}", flush=True)
        for metric in ("precision", "recall"):
            peers = {peer: round(figures[f"{metric}, {peer}"], 4) for peer in ("cleanlab", "cleanlab, its own count")}
            rows.append(_row(f"{metric} at our count, {about}, {setting}", "share", figures[metric], peers))
        peers = {"cleanlab": round(figures["excess, cleanlab"], 2)}
        rows.append(_row(f"estimated share less the true one, {about}, {setting}", "points", figures["excess"], peers))
        rows.append(_row(f"the same beyond the first estimate, {about}, {setting}", "points", figures["further"], {}))
        rows.append(_row(f"true shares below the bound, {about}, {setting}", "share", figures["bounded"], {}))
    return rows


def install_cleanlab() -> None:
    """Into bench/.cache, once. What it needs besides termcolor is here."""
    folder = CACHE / CLEANLAB
    if not (folder / "cleanlab").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--target", str(folder), CLEANLAB, "termcolor"], check=True)
    sys.path.append(str(folder))


def fit(documents: EncodedDocuments, labels: Ids) -> Baseline:
    """The baseline of the documents with other labels."""
    changed = EncodedDocuments(documents.guids, labels, documents.splits, documents.tokens, documents.ends)
    names = [f"label {number}" for number in range(int(documents.labels.max()) + 1)]
    made = fit_documents(changed, np.arange(len(labels)), names)
    assert isinstance(made, Baseline), made
    return made


def flip(clean: Baseline, share: float, kind: str, seed: int = 0) -> Ids:
    """Labels of which a share is wrong: another one at random, or in both directions between the pairs that are confused most."""
    random, labels = np.random.default_rng(seed), clean.documents.labels.copy()
    width, count = int(labels.max()) + 1, round(share * len(labels))
    if kind == "at random":
        rows = random.permutation(len(labels))[:count]
        labels[rows] = (labels[rows] + random.integers(1, width, count)) % width
        return labels
    confused = np.zeros((width, width))
    np.add.at(confused, labels, clean.probabilities)
    np.fill_diagonal(confused, 0)
    both = confused + confused.T
    pairs = sorted(((a, b) for a in range(width) for b in range(a)), key=lambda pair: -both[pair])
    rows, start = np.array([], dtype=np.int64), clean.documents.labels
    taken: set[int] = set()
    for a, b in pairs:  # at most a third of a label is made wrong, so that its meaning stays
        for one, other in ((a, b), (b, a)):
            mine = random.permutation(np.flatnonzero(start == one))
            mine = mine[: max(1, len(mine) // 3)] if one not in taken else mine[:0]
            mine = mine[: count - len(rows)]
            labels[mine], rows = other, np.concatenate([rows, mine])
        taken |= {a, b}
    return labels


def compare(documents: EncodedDocuments, given: Ids, at_first: float) -> dict[str, float]:
    """Of one way to make labels wrong: precision and recall, ours and the peer's, and estimates in points. at_first: the share before."""
    from cleanlab.filter import find_label_issues

    probabilities = fit(documents, given).probabilities
    wrong = given != documents.labels
    ours = rank_suspects(given, probabilities).rows
    values = probabilities.astype(np.float64)
    values /= values.sum(axis=1, keepdims=True)
    theirs = find_label_issues(given, values, return_indices_ranked_by="self_confidence", n_jobs=1)
    own = values[np.arange(len(given)), given]
    rest = np.setdiff1d(np.argsort(own, kind="stable"), theirs, assume_unique=True)
    ranked = np.concatenate([theirs, rest])[: len(ours)]
    figures = {}
    for about, rows in (("", ours), (", cleanlab", ranked), (", cleanlab, its own count", theirs)):
        figures[f"precision{about}"] = float(wrong[rows].sum() / max(1, len(rows)))
        figures[f"recall{about}"] = float(wrong[rows].sum() / wrong.sum())
    estimate, truth = len(ours) / len(given), float(wrong.mean())
    return {
        **figures,
        "excess": 100 * (estimate - truth),
        "excess, cleanlab": 100 * (len(theirs) / len(given) - truth),
        "further": 100 * (estimate - at_first - truth),
        "bounded": float(truth <= bound_share(len(ours), len(given))),
    }


def _row(metric: str, unit: str, ours: float, peers: dict[str, float]) -> dict[str, Any]:
    return {"bench": "suspects", "metric": metric, "unit": unit, "ours": round(ours, 4), "peers": peers, "ratio": None}
