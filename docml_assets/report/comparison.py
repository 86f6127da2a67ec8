"""Which of two models is better on the same documents, said only as far as the documents show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import stats

from docml_assets.report.predictions import Floats, Ids, Predictions
from docml_assets.report.schema import NO_DIFFERENCE, LabelWinner, Pair
from docml_assets.report.statistics import LabelScores, interval

ALPHA = 0.05


def compare_pairs(
    predictions: Predictions,
    f1: Mapping[str, float],
    resampled: Mapping[str, Floats],
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[Pair]:
    """Every pair of models (or the given ones): four counts, difference of macro-F1 with its interval, McNemar's test, verdict.

    f1 and resampled: macro-F1 by model, and its resamples (`statistics.resampled_f1`), float64[resamples].
    """
    pairs = list(combinations(predictions.models, 2)) if pairs is None else pairs
    right = {model: ids == predictions.truth for model, ids in predictions.predicted.items()}
    counts = {(a, b): FourCounts.of(right[a], right[b]) for a, b in pairs}
    p_values = [mcnemar_mid_p(counts[pair].only_a, counts[pair].only_b) for pair in pairs]
    rows = []
    for (a, b), p, corrected in zip(pairs, p_values, holm(p_values), strict=True):
        four, difference = counts[a, b], f1[a] - f1[b]
        bounds = interval(difference, resampled[a] - resampled[b])
        rows.append(
            Pair(
                a=a,
                b=b,
                both_correct=four.both_correct,
                only_a=four.only_a,
                only_b=four.only_b,
                both_wrong=four.both_wrong,
                f1_difference=difference,
                f1_difference_ci95=bounds,
                mcnemar_p=p,
                mcnemar_p_holm=corrected,
                verdict=verdict(a, b, four, bounds, corrected),
            )
        )
    return rows


@dataclass(frozen=True)
class FourCounts:
    """Documents by who is right."""

    both_correct: int
    only_a: int
    only_b: int
    both_wrong: int

    @classmethod
    def of(cls, a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> "FourCounts":
        """From bool[n] each: whether the model is right."""
        return cls(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))


def mcnemar_mid_p(only_a: int, only_b: int) -> float:
    """McNemar's test, two-sided mid-p: of the discordant documents, as many for either side?

    Fagerland, Lydersen and Laake, The McNemar test for binary matched-pairs data, 2013: the exact p minus half the probability of
    what was observed, on both sides.
    """
    fewer, discordant = min(only_a, only_b), only_a + only_b
    if only_a == only_b:
        return 1.0
    return float(2 * stats.binom.cdf(fewer, discordant, 0.5) - stats.binom.pmf(fewer, discordant, 0.5))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of any false verdict among all pairs stays below the level."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def verdict(a: str, b: str, four: FourCounts, bounds: tuple[float, float], corrected_p: float) -> str:
    """The better model's name, where the corrected test and the interval say so with one voice; else "no difference shown"."""
    if corrected_p < ALPHA and bounds[0] > 0 and four.only_a > four.only_b:
        return a
    if corrected_p < ALPHA and bounds[1] < 0 and four.only_b > four.only_a:
        return b
    return NO_DIFFERENCE


def label_winners(scores: Mapping[str, LabelScores], labels: Sequence[str]) -> list[LabelWinner]:
    """By label with support: the models with the highest F1, and by how much they lead. A description, not a test."""
    rows = []
    for index, label in enumerate(labels):
        by_model = {model: float(score.f1[index]) for model, score in scores.items()}
        if not next(iter(scores.values())).present[index]:
            continue
        best = max(by_model.values())
        behind = [value for value in by_model.values() if value < best]
        winners = tuple(model for model, value in by_model.items() if value == best)
        rows.append(LabelWinner(label=label, models=winners, f1=best, lead=best - max(behind) if behind else 0.0))
    return rows


def disagreements(predictions: Predictions) -> Ids:
    """Positions of the documents on which not all models give the same label, those that some model has right first."""
    said = np.stack(list(predictions.predicted.values()))
    apart = (said != said[0]).any(axis=0)
    some_right = (said == predictions.truth).any(axis=0)
    return np.concatenate([np.flatnonzero(apart & some_right), np.flatnonzero(apart & ~some_right)])
