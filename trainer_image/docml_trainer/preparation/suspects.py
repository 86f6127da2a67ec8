"""Labels that look wrong, found by confident learning (Northcutt, Jiang, Chuang 2021, "Confident Learning: Estimating Uncertainty in
Dataset Labels", JAIR 70) from the baseline's answers about documents that it was not fitted on.

A label's threshold is the mean probability that documents with this label are given for it. A document counts as confidently of the
label whose probability, among those above their threshold, is the highest. Documents that are confidently of another label than theirs
are the off-diagonal of the paper's confident joint. The number of those to which that label is also the likelier one estimates how many
labels are wrong. As many are listed, out of all to which another label is likelier: those first for whose own label the least speaks, by the
geometric mean of two quotients. One is its probability over its threshold, which finds labels that were flipped at random. The other finds
those that were flipped between certain labels: by Bayes' theorem, how likely it is that the document is of its label and was given it, over how
likely that it is of another and was given it by mistake. How often documents of a label are given each of the others is counted among the
surer half of those that are confidently of it, since a baseline's own confusions are rarer there, and drawn towards one rate for all labels
by a Dirichlet prior. How strong that is, is not chosen: the rates are averaged over strengths by the marginal likelihood of the counts (the
Dirichlet-multinomial; Minka, Estimating a Dirichlet distribution, 2000). bench/suspects.py compares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats
from scipy.special import gammaln, softmax

from docml_trainer.preparation.baseline import Probabilities
from docml_trainer.preparation.baseline_inputs import (
    EncodedDocuments,
    Floats,
    Ids,
    Rows,
    WeightedTerms,
    dense,
    transpose,
)

MOST = 5_000  # suspects that are listed
NEIGHBOURS_AT_ONCE = 100
KNOWN_AT_ONCE = 20_000  # documents that they are compared with
STRENGTHS = tuple(10.0 ** (power / 2) for power in range(8))  # of the prior, in documents a label: 1 to some 3,000


@dataclass(frozen=True)
class Ranking:
    """Documents whose label looks wrong, the most doubtful first: positions int64[n] and likely labels int64[n].

    confidence: float64[n], ascending: what speaks for the given label (the module's head says how it is measured).
    margins: float64[n], below 0: by how much the given label is less probable than the likely one.
    """

    rows: Ids
    likely: Ids
    confidence: Floats
    margins: Floats


def rank_suspects(labels: Ids, probabilities: Probabilities) -> Ranking:
    """Which of the documents look as if their label was wrong. labels: int64[n]; probabilities: float32[n, labels], out of sample.

    A document whose own label has the probability 0 is not judged: the fit that answered had seen no document with that label, as
    happens where all of them belong together.
    """
    everyone, width = np.arange(len(labels)), probabilities.shape[1]
    values = probabilities.astype(np.float64)
    own = values[everyone, labels]
    counts = np.bincount(labels[own > 0], minlength=width)
    # A label that no judged document has is never the likely one.
    thresholds = np.where(counts > 0, np.bincount(labels, weights=own, minlength=width) / np.maximum(counts, 1), np.inf)
    above = np.where(values >= thresholds, values, -1.0)
    confident = above.max(axis=1) >= 0
    likely = np.where(confident, above.argmax(axis=1), values.argmax(axis=1))
    margins = own - values[everyone, likely]
    count = int(((own > 0) & confident & (margins < 0)).sum())
    rows = np.flatnonzero((own > 0) & (margins < 0))
    given = labels[rows]
    known = np.flatnonzero(confident & (own > 0))
    mistakes = estimate_mistakes(labels[known], likely[known], values[known, likely[known]], counts)
    joint = values[rows] * mistakes[:, given].T
    right = joint[np.arange(len(rows)), given]
    joint[np.arange(len(rows)), given] = 0
    confidence = np.sqrt(own[rows] / thresholds[given] * right / joint.sum(axis=1))
    order = np.argsort(confidence, kind="stable")[:count]
    rows = rows[order]
    return Ranking(rows, likely[rows], confidence[order], margins[rows])


def estimate_mistakes(given: Ids, likely: Ids, sure: Floats, frequencies: Ids) -> Floats:
    """float64[labels, labels]: which share of the documents that are of a label (row) are given each label (column).

    Of documents that are confidently of a label: their given and their `likely` labels, int64[n], and the latter's probabilities, float64[n].
    frequencies: of the given labels among all documents.
    """
    width = len(frequencies)
    found = np.zeros((width, width))
    for label in np.unique(likely):
        members = np.flatnonzero(likely == label)
        surer = members[sure[members] >= np.median(sure[members])]
        found[label] = np.bincount(given[surer], minlength=width)
    right = np.trace(found)
    others = np.tile(frequencies.astype(np.float64), (width, 1))
    np.fill_diagonal(others, 0)
    # As if of two documents more one had a wrong label: no mistake is impossible
    wrong = (found.sum() - right + 1) / (found.sum() + 2)
    prior = wrong * others / np.maximum(others.sum(axis=1, keepdims=True), 1) + (1 - wrong) * np.eye(width)
    possible, totals, likelihoods = prior > 0, found.sum(axis=1), []
    for strength in STRENGTHS:
        pseudo = strength * prior[possible]
        of_labels = gammaln(strength) - gammaln(strength + totals)
        likelihoods.append(of_labels.sum() + (gammaln(pseudo + found[possible]) - gammaln(pseudo)).sum())
    rates = np.zeros_like(found)
    for strength, weight in zip(STRENGTHS, softmax(np.array(likelihoods)), strict=True):
        rates += weight * (found + strength * prior) / (totals + strength)[:, np.newaxis]
    return rates


def list_suspects(
    documents: EncodedDocuments,
    probabilities: Probabilities,
    weighted: WeightedTerms | Rows,
    label_names: Sequence[str],
    unfit: str | None = None,
) -> tuple[pa.Table, dict[str, Any]]:
    """label_suspects.parquet, one row a suspect, the most doubtful first; and what split_metadata.json says. weighted: `Baseline.weighted`.
    unfit: why the probabilities are none to doubt a label by; then nothing is listed, and that is said.

    artifact_guid, label, likely_label, probability and likely_probability of these two, margin (the difference),
    confidence (what speaks for the label, by the module's head: below 1 more speaks against it), split, nearest_same and nearest_likely: the
    GUIDs of the most similar documents (cosine of `weighted`) that have the label, and the likely one; null where there is none.
    """
    ranking = rank_suspects(documents.labels, probabilities)
    listed = 0 if unfit else MOST
    rows, likely = ranking.rows[:listed], ranking.likely[:listed]
    given = documents.labels[rows]
    nearest_same, nearest_likely = _nearest(
        weighted, rows, documents.labels, np.array([given, likely]), documents.guids
    )
    names, guids = np.array(label_names, dtype=object), np.array(documents.guids, dtype=object)
    table = pa.table(
        {
            "artifact_guid": pa.array(guids[rows], pa.string()),
            "label": pa.array(names[given], pa.string()),
            "likely_label": pa.array(names[likely], pa.string()),
            "margin": pa.array(ranking.margins[:listed], pa.float64()),
            "confidence": pa.array(ranking.confidence[:listed], pa.float64()),
            "probability": pa.array(probabilities[rows, given], pa.float32()),
            "likely_probability": pa.array(probabilities[rows, likely], pa.float32()),
            "split": pa.array(np.array(documents.splits, dtype=object)[rows], pa.string()),
            "nearest_same": pa.array(nearest_same, pa.string()),
            "nearest_likely": pa.array(nearest_likely, pa.string()),
        }
    )
    if unfit:
        return table, {"none": unfit}
    by_pair = table.group_by(["label", "likely_label"]).aggregate([([], "count_all")])
    facts = {
        "documents": len(ranking.rows),
        "share": round(len(ranking.rows) / max(len(documents.guids), 1), 6),
        "share_upper95": round(bound_share(len(ranking.rows), len(documents.guids)), 6),
        "pairs": sorted(by_pair.to_pylist(), key=lambda row: (-row["count_all"], row["label"], row["likely_label"]))[
            :20
        ],
    }
    return table, facts


def bound_share(suspects: int, documents: int) -> float:
    """What the share of wrong labels is below, with a confidence of 95 % as far as the number of documents goes: Clopper and Pearson's bound.

    That the baseline takes difficult documents for wrong ones makes it larger still (docs/benchmarks.md).
    """
    return (
        float(stats.binomtest(suspects, documents, alternative="less").proportion_ci(0.95).high) if documents else 0.0
    )


def _nearest(
    weighted: WeightedTerms | Rows, rows: Ids, labels: Ids, wanted: Ids, guids: Sequence[str]
) -> list[list[str | None]]:
    """The GUID of the most similar other document with a wanted label. wanted: int64[wishes, rows]; so are the GUIDs."""
    found, highest = np.full(wanted.shape, -1), np.full(wanted.shape, -1.0)
    asked = weighted[rows]
    for label in np.unique(wanted):
        members = np.flatnonzero(labels == label)
        for first in range(0, len(members), KNOWN_AT_ONCE):
            known = members[first : first + KNOWN_AT_ONCE]
            transposed = transpose(weighted[known])
            for wish, of_wish in enumerate(wanted):
                places = np.flatnonzero(of_wish == label)
                for start in range(0, len(places), NEIGHBOURS_AT_ONCE):
                    part = places[start : start + NEIGHBOURS_AT_ONCE]
                    similarity = dense(asked[part] @ transposed)
                    similarity[rows[part][:, np.newaxis] == known[np.newaxis, :]] = -1.0
                    nearest = similarity.argmax(axis=1)
                    values = similarity[np.arange(len(part)), nearest]
                    better = values > highest[wish, part]
                    found[wish, part[better]], highest[wish, part[better]] = known[nearest[better]], values[better]
    return [[guids[row] if row >= 0 else None for row in of_wish] for of_wish in found.tolist()]
