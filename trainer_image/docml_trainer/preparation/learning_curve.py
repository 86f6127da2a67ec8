"""Would more documents help? The baseline's score by the number of documents it was fitted on, and what twice as many would bring.

The baseline is fitted on stratified parts of its documents, which do not overlap, and judged on the validation and test documents. A score
y after n documents follows an inverse power law (Cortes et al., Learning curves: asymptotic values and rate of convergence, NIPS 1993):

    y(n) = a - b n^(-c) + noise        the noise's variance is proportional to n^(-1/2)

or grows with the logarithm of n, which is its limit as c goes to 0, or, while labels have a handful of documents each, like n^(1/4) or
n^(1/2).

What the fits have in common (the documents they are judged on) does not get less with n, what they do not (their documents) gets less like
1 / n: the noise lies between. For each exponent of a few, a and b are a weighted linear regression, whose prediction for 2 n has a t
distribution (Gelman et al., Bayesian Data Analysis, 3rd edition, 14.2, with a flat prior). The exponents are averaged by their posterior
probability (Hoeting et al., Bayesian Model Averaging, Statistical Science 1999), and the interval counts what they differ by.
bench/learning_curve.py measures how often it holds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import f1_score

from docml_trainer.preparation.baseline import Baseline, answer
from docml_trainer.preparation.baseline_inputs import Floats, Ids

DIVISORS = (2, 4, 8)  # of the number of documents: the sizes of the parts
MANY = 5_000  # documents above which a quarter of the parts is fitted: together that takes as long as one fit on all
FEWEST = 8  # documents of a part
FEWEST_FITS = 4
EXPONENTS = (-0.5, -0.25, 0.0, 0.25, 0.5)
INTERVAL = 0.8


def estimate_curve(baseline: Baseline, label_names: Sequence[str]) -> dict[str, Any]:
    """What split_metadata.json says of the baseline's learning curve; {"none": reason} where nothing can be said.

    points: [documents, macro-F1] of every fit. documents: twice those that were fitted. f1_macro, and labels by name: the forecast for so
    many with its interval; now: the label's F1 with those that there are.
    """
    documents, width = baseline.documents, len(label_names)
    asked = np.flatnonzero([split != "train" for split in documents.splits])
    if not len(asked):
        return {"none": "there are no validation and test documents"}
    truth, present = documents.labels[asked], np.unique(documents.labels[asked])
    fitted = baseline.fitted
    parts = draw_parts(fitted, documents.labels)
    sizes = np.array([len(rows) for rows in parts])
    if len(parts) < FEWEST_FITS:
        return {"none": f"{len(fitted)} train documents are too few to fit on parts of them"}
    scores = []
    for rows in parts:
        known = len(rows) == len(fitted)
        said = (
            baseline.probabilities[asked]
            if known
            else answer(baseline.inputs, documents.labels, rows, asked, baseline.facts["C"], width)[0]
        )
        scores.append(f1_score(truth, said.argmax(axis=1), labels=present, average=None, zero_division=0))
    by_label = np.array(scores)
    macro, twice = by_label.mean(axis=1), 2 * len(fitted)
    return {
        "points": [[int(size), round(float(score), 6)] for size, score in zip(sizes, macro, strict=True)],
        "documents": twice,
        "f1_macro": _said(sizes, macro, twice),
        "labels": {
            label_names[label]: _said(sizes, column, twice)
            for label, column in zip(present.tolist(), by_label.T, strict=True)
        },
    }


def _said(sizes: Ids, scores: Floats, size: int) -> dict[str, Any]:
    value, low, high = forecast(sizes, scores, size)
    return {
        "now": round(float(scores[0]), 6),
        "forecast": round(value, 6),
        "interval80": [round(low, 6), round(high, 6)],
    }


def draw_parts(fitted: Ids, labels: Ids) -> list[Ids]:
    """All of the documents, then parts of each smaller size that do not overlap, each with about every label's share."""
    random = np.random.default_rng(0)
    shuffled = random.permutation(fitted)
    # Label by label, so that every k-th document makes a part with the labels' shares
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    parts = [fitted]
    for divisor in DIVISORS:
        if len(fitted) // divisor < FEWEST:
            break
        wanted = divisor if len(fitted) <= MANY else max(1, divisor // 4)
        parts += [np.sort(ordered[first::divisor]) for first in range(wanted)]
    return parts


def forecast(sizes: Ids, scores: Floats, size: int) -> tuple[float, float, float]:
    """The score to expect after `size` documents, and the interval in which one fit's score will lie with a probability of 80 %."""
    most = sizes.max()
    weights = (sizes / most) ** 0.5
    values, spreads, evidence = [], [], []
    for exponent in EXPONENTS:
        terms = np.column_stack([np.ones(len(sizes)), _growth(sizes / most, exponent)])
        inverse = np.linalg.inv(terms.T * weights @ terms)
        coefficients = inverse @ (terms.T * weights @ scores)
        if coefficients[1] < 0:  # more documents do not make it worse
            coefficients = np.array([np.average(scores, weights=weights), 0.0])
        freedom = len(sizes) - 2
        squares = max(float(weights @ (scores - terms @ coefficients) ** 2), 1e-12)
        new = np.concatenate([[1.0], _growth(np.array([size / most]), exponent)])
        values.append(float(new @ coefficients))
        spreads.append(squares / freedom * ((most / size) ** 0.5 + new @ inverse @ new))
        evidence.append(0.5 * np.linalg.slogdet(inverse)[1] - freedom / 2 * np.log(squares))
    probability = np.exp(np.array(evidence) - max(evidence))
    probability /= probability.sum()
    value = float(probability @ values)
    variance = float(probability @ (np.array(spreads) + (np.array(values) - value) ** 2))
    reach = float(stats.t.ppf((1 + INTERVAL) / 2, len(sizes) - 2)) * variance**0.5
    return min(1.0, max(0.0, value)), max(0.0, value - reach), min(1.0, value + reach)


def _growth(sizes: Floats, exponent: float) -> Floats:
    return np.log(sizes) if exponent == 0 else -np.sign(exponent) * sizes**-exponent
