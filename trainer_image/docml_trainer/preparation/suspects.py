"""Labels that look wrong, found by confident learning (Northcutt, Jiang, Chuang 2021, "Confident Learning: Estimating Uncertainty in
Dataset Labels", JAIR 70) from the baseline's answers about documents that it was not fitted on.

A label's threshold is the mean probability that documents with this label are given for it. A document counts as confidently of the
label whose probability, among those above their threshold, is the highest. Documents that are confidently of another label than theirs
are the off-diagonal of the paper's confident joint: their number estimates how many labels are wrong. As many documents are suspected,
those first whose own label falls behind the likely one by most, both probabilities divided by their label's threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer

from docml_trainer.preparation.baseline import EncodedDocuments, Floats, Ids, Probabilities

MOST = 5_000  # suspects that are listed
NEIGHBOURS_AT_ONCE = 100


@dataclass(frozen=True)
class Ranking:
    """Documents whose label looks wrong, the most doubtful first: positions int64[n], likely labels int64[n], margins float64[n] (< 0)."""

    rows: Ids
    likely: Ids
    margins: Floats


def rank_suspects(labels: Ids, probabilities: Probabilities) -> Ranking:
    """Which of the documents look as if their label was wrong. labels: int64[n]; probabilities: float32[n, labels], out of sample."""
    everyone = np.arange(len(labels))
    values = probabilities.astype(np.float64)
    counts = np.bincount(labels, minlength=values.shape[1])
    own = np.bincount(labels, weights=values[everyone, labels], minlength=values.shape[1])
    # A label that no document has is never the likely one.
    thresholds = np.where(counts > 0, own / np.maximum(counts, 1), np.inf)
    thresholds = np.maximum(thresholds, np.finfo(np.float64).tiny)
    above = np.where(values >= thresholds, values, -1.0)
    confident = above.max(axis=1) >= 0
    count = int((confident & (above.argmax(axis=1) != labels)).sum())
    ratios = values / thresholds
    given = ratios[everyone, labels]
    ratios[everyone, labels] = -1.0
    likely = ratios.argmax(axis=1)
    margins = given - ratios.max(axis=1)
    first = np.argsort(margins, kind="stable")[:count]
    first = first[margins[first] < 0]
    return Ranking(first, likely[first], margins[first])


def list_suspects(
    documents: EncodedDocuments, probabilities: Probabilities, counts: sparse.csr_array, label_names: Sequence[str]
) -> tuple[pa.Table, dict[str, Any]]:
    """label_suspects.parquet, one row a suspect, the most doubtful first; and what split_metadata.json says.

    artifact_guid, label, likely_label, margin, probability (of label), likely_probability, split, nearest_same and nearest_likely:
    the GUIDs of the most similar documents (cosine of TF-IDF) that have the label, and the likely one; null where there is none.
    """
    ranking = rank_suspects(documents.labels, probabilities)
    rows, likely = ranking.rows[:MOST], ranking.likely[:MOST]
    given = documents.labels[rows]
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    names, guids = np.array(label_names, dtype=object), np.array(documents.guids, dtype=object)
    table = pa.table(
        {
            "artifact_guid": pa.array(guids[rows], pa.string()),
            "label": pa.array(names[given], pa.string()),
            "likely_label": pa.array(names[likely], pa.string()),
            "margin": pa.array(ranking.margins[:MOST], pa.float64()),
            "probability": pa.array(probabilities[rows, given], pa.float32()),
            "likely_probability": pa.array(probabilities[rows, likely], pa.float32()),
            "split": pa.array(np.array(documents.splits, dtype=object)[rows], pa.string()),
            "nearest_same": pa.array(_nearest(weighted, rows, documents.labels, given, guids), pa.string()),
            "nearest_likely": pa.array(_nearest(weighted, rows, documents.labels, likely, guids), pa.string()),
        }
    )
    by_pair = table.group_by(["label", "likely_label"]).aggregate([([], "count_all")])
    facts = {
        "documents": len(ranking.rows),
        "share": round(len(ranking.rows) / max(len(documents.guids), 1), 6),
        "pairs": sorted(by_pair.to_pylist(), key=lambda row: (-row["count_all"], row["label"], row["likely_label"]))[
            :20
        ],
    }
    return table, facts


def _nearest(
    weighted: sparse.csr_array, rows: Ids, labels: Ids, wanted: Ids, guids: "np.ndarray[Any, Any]"
) -> list[str | None]:
    """By row: the GUID of the most similar other document with the wanted label."""
    found: list[str | None] = []
    for start in range(0, len(rows), NEIGHBOURS_AT_ONCE):
        part, label = rows[start : start + NEIGHBOURS_AT_ONCE], wanted[start : start + NEIGHBOURS_AT_ONCE]
        similarity = (weighted[part] @ weighted.T).toarray()
        similarity[np.arange(len(part)), part] = -1.0
        similarity[labels[np.newaxis, :] != label[:, np.newaxis]] = -1.0
        best = similarity.argmax(axis=1)
        found += [
            str(guids[column]) if similarity[row, column] >= 0 else None for row, column in enumerate(best.tolist())
        ]
    return found
