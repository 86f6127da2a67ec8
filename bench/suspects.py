"""Labels that look wrong, beside cleanlab: 4, 8 and 16 % of the labels of three real sets are made wrong, at random or between labels
that the baseline confuses most.

Both get the same probabilities: the baseline's, out of sample. Ours lists as many documents as it estimates to be wrong; cleanlab's list
(`find_label_issues`, its default, by self-confidence) is cut or prolonged to that length, and judged at its own length as well. The sets
have wrong labels of their own, which count as false alarms for both; what each set is estimated at before any label is made wrong stands in a
row of its own, and by how much more it is estimated at afterwards in another.
"""

import subprocess
import sys
from typing import Any

import numpy as np

from bench._texts import CACHE, SETS, encode, read_set
from docml_trainer.preparation.baseline import Baseline, fit_documents
from docml_trainer.preparation.baseline_inputs import EncodedDocuments, Ids
from docml_trainer.preparation.suspects import rank_suspects

CLEANLAB = "cleanlab==2.9.0"
SHARES = (0.04, 0.08, 0.16)
KINDS = ("at random", "most confused")
DOCUMENTS = 600


def run() -> list[dict[str, Any]]:
    install_cleanlab()
    rows = []
    for name in SETS:
        texts, labels = read_set(name, DOCUMENTS)
        documents = encode(texts, labels)
        clean = fit(documents, documents.labels)
        at_first = len(rank_suspects(documents.labels, clean.probabilities).rows) / len(texts)
        rows.append(_row(f"estimated share with no label made wrong, {name}", "points", 100 * at_first, {}))
        for kind in KINDS:
            for share in SHARES:
                rows += compare(f"{name}, {share:.0%} {kind}", documents, flip(clean, share, kind), at_first)
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


def flip(clean: Baseline, share: float, kind: str) -> Ids:
    """Labels of which a share is wrong: another one at random, or in both directions between the pairs that are confused most."""
    random, labels = np.random.default_rng(0), clean.documents.labels.copy()
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


def compare(name: str, documents: EncodedDocuments, given: Ids, at_first: float) -> list[dict[str, Any]]:
    """Rows of one set and one way to make labels wrong. at_first: the share that was estimated before."""
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
    rows = []
    for metric, judge in (("precision", len), ("recall", lambda _: wrong.sum())):
        mine, peer, peers_own = (float(wrong[found].sum() / max(1, judge(found))) for found in (ours, ranked, theirs))
        peers = {"cleanlab": round(peer, 4), "cleanlab, its own count": round(peers_own, 4)}
        rows.append(_row(f"{metric} at our count, {name}", "share", mine, peers))
    estimate, truth = len(ours) / len(given), float(wrong.mean())
    peers = {"cleanlab": round(100 * (len(theirs) / len(given) - truth), 2)}
    return [
        *rows,
        _row(f"estimated share less the true one, {name}", "points", 100 * (estimate - truth), peers),
        _row(f"the same beyond the first estimate, {name}", "points", 100 * (estimate - at_first - truth), {}),
    ]


def _row(metric: str, unit: str, ours: float, peers: dict[str, float]) -> dict[str, Any]:
    return {"bench": "suspects", "metric": metric, "unit": unit, "ours": round(ours, 4), "peers": peers, "ratio": None}
