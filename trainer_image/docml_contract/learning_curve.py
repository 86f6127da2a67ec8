"""How a score grows with the number of documents, and what twice as many would bring: of the baseline, and of a model of the run.

What is measured is fitted on stratified parts of the train documents, which do not overlap. A score y after n documents follows an inverse
power law (Cortes et al., Learning curves: asymptotic values and rate of convergence, NIPS 1993):

    y(n) = a - b n^(-c) + noise        the noise's variance is proportional to n^(-1/2)

or grows with the logarithm of n, which is its limit as c goes to 0, or, while labels have a handful of documents each, like n^(1/4) or
n^(1/2).

What the fits have in common (the documents they are judged on) does not get less with n, what they do not (their documents) gets less like
1 / n: the noise lies between. For each exponent of a few, a and b are a weighted linear regression, whose prediction for 2 n has a t
distribution (Gelman et al., Bayesian Data Analysis, 3rd edition, 14.2, with a flat prior). The exponents are averaged by their posterior
probability (Hoeting et al., Bayesian Model Averaging, Statistical Science 1999), and the interval counts what they differ by.
bench/learning_curve.py measures how often it holds.

numpy and scipy are loaded by those who call: both sides have them, and the rest of this package needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    Ids = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

DIVISORS = (2, 4, 8)  # of the number of documents: the sizes of the parts
FEWEST_FITS = 4
EXPONENTS = (-0.5, -0.25, 0.0, 0.25, 0.5)
INTERVAL = 0.8


def draw_part(labels: Ids, divisor: int, index: int) -> Ids:
    """The rows, ascending, of the part `index` (from 0) of `divisor` parts that do not overlap, each with about every label's share."""
    import numpy as np

    shuffled = np.random.default_rng(0).permutation(len(labels))
    # Label by label, so that every k-th document makes a part with the labels' shares
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return np.sort(ordered[index::divisor])


def describe_curve(sizes: Ids, by_label: Floats, labels: Sequence[str]) -> dict[str, Any]:
    """A curve as documents have it. sizes: int64[fits], those on all documents first. by_label: float64[fits, labels], F1 in each.

    points: [documents, macro-F1] of every fit. documents: twice those that there are. f1_macro, and labels by name: what there is now, the
    forecast for so many, and its interval.
    """
    macro, twice = by_label.mean(axis=1), 2 * int(sizes.max())
    return {
        "points": [[int(size), round(float(score), 6)] for size, score in zip(sizes, macro, strict=True)],
        "documents": twice,
        "f1_macro": _said(sizes, macro, twice),
        "labels": {name: _said(sizes, scores, twice) for name, scores in zip(labels, by_label.T, strict=True)},
    }


def _said(sizes: Ids, scores: Floats, size: int) -> dict[str, Any]:
    value, low, high = forecast(sizes, scores, size)
    return {
        "now": round(float(scores[sizes == sizes.max()].mean()), 6),
        "forecast": round(value, 6),
        "interval80": [round(low, 6), round(high, 6)],
    }


def forecast(sizes: Ids, scores: Floats, size: int) -> tuple[float, float, float]:
    """The score to expect after `size` documents, and the interval in which one fit's score will lie with a probability of 80 %."""
    import numpy as np
    from scipy import stats

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
    value, low, high = (min(1.0, max(0.0, bound)) for bound in (value, value - reach, value + reach))
    return value, low, high


def _growth(sizes: Floats, exponent: float) -> Floats:
    import numpy as np

    return np.log(sizes) if exponent == 0 else -np.sign(exponent) * sizes**-exponent
