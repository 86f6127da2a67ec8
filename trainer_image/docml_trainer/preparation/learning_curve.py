"""Would more documents help? The baseline's score by the number of documents it was fitted on (docml_contract/learning_curve.py)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from docml_contract.jobs import FEWEST_OF_PART
from docml_contract.learning_curve import DIVISORS, FEWEST_FITS, describe_curve, draw_part
from docml_trainer.preparation.baseline import Baseline, answer
from docml_trainer.preparation.baseline_inputs import Ids

MANY = 5_000  # documents above which a quarter of the parts is fitted: together that takes as long as one fit on all


def estimate_curve(baseline: Baseline, label_names: Sequence[str]) -> dict[str, Any]:
    """What split_metadata.json says of the baseline's learning curve; {"none": reason} where nothing can be said.

    The baseline is fitted on parts of its documents, and judged on the validation and test documents.
    """
    documents, width = baseline.documents, len(label_names)
    asked = np.flatnonzero([split != "train" for split in documents.splits])
    if not len(asked):
        return {"none": "there are no validation and test documents"}
    truth, present = documents.labels[asked], np.unique(documents.labels[asked])
    fitted = baseline.fitted
    parts = draw_parts(fitted, documents.labels)
    if len(parts) < FEWEST_FITS:
        return {"none": f"{len(fitted)} train documents are too few to fit on parts of them"}
    asked_of = [(rows, asked) for rows in parts if len(rows) < len(fitted)]
    found = answer(baseline.inputs, documents.labels, asked_of, [baseline.facts["C"]], width)
    said = [baseline.probabilities[asked], *(each.probabilities[0] for each in found)]
    scores = [f1_score(truth, each.argmax(axis=1), labels=present, average=None, zero_division=0) for each in said]
    sizes = np.array([len(rows) for rows in parts])
    return describe_curve(sizes, np.array(scores), [label_names[label] for label in present.tolist()])


def draw_parts(fitted: Ids, labels: Ids) -> list[Ids]:
    """All of the documents, then parts of each smaller size."""
    parts = [fitted]
    for divisor in DIVISORS:
        if len(fitted) // divisor < FEWEST_OF_PART:
            break
        wanted = divisor if len(fitted) <= MANY else max(1, divisor // 4)
        parts += [fitted[draw_part(labels[fitted], divisor, index)] for index in range(wanted)]
    return parts
