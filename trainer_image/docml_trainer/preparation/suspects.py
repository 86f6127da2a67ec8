"""Labels that look wrong, found by confident learning (Northcutt, Jiang, Chuang 2021, "Confident Learning: Estimating Uncertainty in
Dataset Labels", JAIR 70) from the baseline's answers about documents that it was not fitted on.

A label's threshold is the mean probability that documents with this label are given for it. A document counts as confidently of the
label whose probability, among those above their threshold, is the highest. Documents that are confidently of another label than theirs
are the off-diagonal of the paper's confident joint. The number of those to which that label is also the likelier one estimates how many
labels are wrong. As many are listed, out of all to which another label is likelier: those first for whose own label the least speaks, by the
geometric mean of two quotients: its probability over its threshold, and over the probability of the likeliest other label. The first alone
finds labels that were flipped at random, the second alone those that were flipped between labels which are taken for each other anyway
(bench/suspects.py). The thresholds of other labels take no part: those of rare ones are low, and quotients by them would come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from docml_trainer.preparation.baseline import Probabilities
from docml_trainer.preparation.baseline_inputs import EncodedDocuments, Floats, Ids, Inputs, dense, transpose

MOST = 5_000  # suspects that are listed
NEIGHBOURS_AT_ONCE = 100


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
    others = values[rows]
    others[np.arange(len(rows)), labels[rows]] = 0
    confidence = own[rows] / np.sqrt(thresholds[labels[rows]] * others.max(axis=1, initial=0))
    order = np.argsort(confidence, kind="stable")[:count]
    rows = rows[order]
    return Ranking(rows, likely[rows], confidence[order], margins[rows])


def list_suspects(
    documents: EncodedDocuments,
    probabilities: Probabilities,
    weighted: Inputs,
    label_names: Sequence[str],
    unfit: str | None = None,
) -> tuple[pa.Table, dict[str, Any]]:
    """label_suspects.parquet, one row a suspect, the most doubtful first; and what split_metadata.json says. weighted: `Baseline.weighted`.
    unfit: why the probabilities are none to doubt a label by; then nothing is listed, and that is said.

    artifact_guid, label, likely_label, probability and likely_probability of these two, margin (the difference),
    confidence (what speaks for the label: the geometric mean of its probability over the mean of it among the documents that have it, and over
    the likeliest other label's), split, nearest_same and
    nearest_likely: the GUIDs of the most similar documents (cosine of `weighted`) that have the label, and the likely one; null where there
    is none.
    """
    ranking = rank_suspects(documents.labels, probabilities)
    listed = 0 if unfit else MOST
    rows, likely = ranking.rows[:listed], ranking.likely[:listed]
    given = documents.labels[rows]
    nearest_same, nearest_likely = (
        _nearest(weighted, rows, documents.labels, wanted, documents.guids) for wanted in (given, likely)
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
        "pairs": sorted(by_pair.to_pylist(), key=lambda row: (-row["count_all"], row["label"], row["likely_label"]))[
            :20
        ],
    }
    return table, facts


def _nearest(weighted: Inputs, rows: Ids, labels: Ids, wanted: Ids, guids: Sequence[str]) -> list[str | None]:
    """By row: the GUID of the most similar other document with the wanted label, which is one a row."""
    found: list[str | None] = [None] * len(rows)
    for label in np.unique(wanted):
        members, places = np.flatnonzero(labels == label), np.flatnonzero(wanted == label)
        transposed = transpose(weighted[members])
        for start in range(0, len(places) if len(members) else 0, NEIGHBOURS_AT_ONCE):
            part = places[start : start + NEIGHBOURS_AT_ONCE]
            similarity = dense(weighted[rows[part]] @ transposed)
            similarity[rows[part][:, np.newaxis] == members[np.newaxis, :]] = -1.0
            for row, column in enumerate(similarity.argmax(axis=1).tolist()):
                found[part[row]] = guids[members[column]] if similarity[row, column] >= 0 else None
    return found
