"""Bootstrap of macro-F1: how far the score would move with other test documents of the same kind.

Every model is scored on the same resamples, so that the difference of two models is resampled in pairs. Documents that depend on each
other (SPLIT_BY groups) are drawn together.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse, stats

from docml_assets.report.predictions import Floats, Ids, Predictions
from docml_assets.report.statistics import macro_f1

RESAMPLES = 2000
SEED = 20_170_613
LEVEL = 0.95
_BLOCK = 4_000_000  # numbers held at once: 32 MB


def resampled_f1(predictions: Predictions) -> dict[str, Floats]:
    """Macro-F1 of every model in 2,000 resamples: model -> float64[2000].

    Resample i takes the documents (with groups: the groups, in the order of their first document) at the positions
    `rng.integers(0, n, n)`, the i-th such draw of `numpy.random.default_rng(SEED)`, and is scored by the definition of macro-F1,
    over the labels that have support in it.
    """
    cell_of_unit, counts = _units(predictions)
    width, models = len(predictions.labels), len(predictions.models)
    drawn = np.concatenate([totals @ counts for totals in _draws(cell_of_unit, counts.shape[0])])
    by_kind = drawn.reshape(len(drawn), 2 * models + 1, width)
    support = by_kind[:, 0]
    return {
        model: macro_f1(by_kind[:, 1 + index], support, by_kind[:, 1 + models + index])
        for index, model in enumerate(predictions.models)
    }


def interval(estimate: float, resampled: Floats) -> tuple[float, float]:
    """Bias-corrected percentile interval at 95 %.

    Efron, Nonparametric standard errors and confidence intervals, 1981. F1 is a ratio whose resamples lie below the estimate where
    labels are rare; the plain percentile interval then covers too little (90 % at 400 documents and 20 skewed labels), this one holds
    (bench/report_statistics.py). Resamples equal to the estimate count half.
    """
    below = (np.sum(resampled < estimate) + 0.5 * np.sum(resampled == estimate)) / len(resampled)
    edge = 0.5 / len(resampled)
    shift = 2 * stats.norm.ppf(np.clip(below, edge, 1 - edge))
    tail = stats.norm.ppf((1 - LEVEL) / 2)
    low, high = np.quantile(resampled, stats.norm.cdf([shift + tail, shift - tail]))
    return float(low), float(high)


def _units(predictions: Predictions) -> tuple[Ids, sparse.csr_array]:
    """What is drawn, and what each contributes.

    Documents that are alike in truth and all predictions form a cell, which is drawn as often as any of its documents: int64[units], the
    cell of each unit, and float64[cells, (1 + 2 m) k], what one unit of the cell adds to the support, the correct and the predicted
    counts (m models, k labels).
    """
    cells, first = _cells(predictions)
    width, models = len(predictions.labels), len(predictions.models)
    truth = predictions.truth[first]
    columns, rows = [truth], [np.arange(len(first))]
    for index, ids in enumerate(predictions.predicted.values()):
        said = ids[first]
        right = np.flatnonzero(said == truth)
        columns += [(1 + index) * width + said[right], (1 + models + index) * width + said]
        rows += [right, np.arange(len(first))]
    column, row = np.concatenate(columns), np.concatenate(rows)
    shape = (len(first), (1 + 2 * models) * width)
    counts = sparse.csr_array((np.ones(len(column)), (row, column)), shape=shape)
    if predictions.groups is None:
        return cells, counts
    number = int(predictions.groups.max()) + 1
    members = sparse.csr_array((np.ones(len(cells)), (predictions.groups, cells)), shape=(number, len(first)))
    return np.arange(number), sparse.csr_array(members @ counts)


def _cells(predictions: Predictions) -> tuple[Ids, Ids]:
    """int64[n], the cell of each document, and int64[cells], one document of each cell."""
    width = len(predictions.labels)
    cells = predictions.truth
    for ids in predictions.predicted.values():
        _, cells = np.unique(cells * width + ids, return_inverse=True)
    _, first, cells = np.unique(cells, return_index=True, return_inverse=True)
    return cells, first


def _draws(cell_of_unit: Ids, cells: int) -> Iterator[Floats]:
    """How often each cell is drawn: float64[resamples, cells], in blocks."""
    rng = np.random.default_rng(SEED)
    units = len(cell_of_unit)
    block = max(1, _BLOCK // max(units, cells))
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        chosen = cell_of_unit[rng.integers(0, units, size=(rows, units))]
        chosen += np.arange(rows)[:, None] * cells
        yield np.bincount(chosen.ravel(), minlength=rows * cells).reshape(rows, cells).astype(np.float64)
