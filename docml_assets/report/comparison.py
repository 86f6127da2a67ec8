"""Which of two models is better on the same documents, said only as far as the documents show it: within a run, and against others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import stats

from docml_assets.errors import ReportError
from docml_assets.report.predictions import Floats, Ids, Predictions, read_predictions
from docml_assets.report.schema import (
    NO_DIFFERENCE,
    LabelEffect,
    LabelWinner,
    Pair,
    Past,
    PastComparison,
    PastRun,
    PastScore,
    read_report,
)
from docml_assets.report.statistics import LabelScores, confusion_matrix, interval, label_scores, resampled_f1
from docml_assets.tables import read_parquet
from docml_contract.names import PREDICTIONS, RunPlace
from resources.store import Store
from resources.store.manifests import read_finished

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


COMPARED_RUNS = 3  # the latest; each costs a bootstrap of its own
HISTORY_RUNS = 20  # the latest that share test documents


@dataclass(frozen=True)
class PreviousRun:
    """A finished run with an inference report."""

    experiment: str
    run: int
    predictions: pa.Table  # its predictions.parquet
    labels: tuple[str, ...]  # `labels` of its report.json
    changed: tuple[str, ...] = ()  # what it changed from the run before it in the list that it belongs to

    def read(self) -> Predictions:
        """Its predictions, checked. ReportError if they are not what its labels say."""
        return read_predictions(self.predictions, self.labels, f"predictions of {self.experiment} run {self.run}")


@dataclass(frozen=True)
class RunComparison:
    """Every model of run a against every model of run b, on the documents that both were tested on."""

    a: str
    b: str
    common_documents: int
    only_a_documents: int
    only_b_documents: int
    relabelled: int  # common documents whose label differs between the runs; a's counts as the truth
    f1_macro: Mapping[str, float]
    comparison: PastComparison


def read_run(store: Store, place: RunPlace) -> PreviousRun:
    """What a run's models said. ReportError if the run has no finished report."""
    report = read_report(store, place)
    predictions = read_parquet(read_finished(store, place.inference, PREDICTIONS))
    return PreviousRun(place.experiment, place.number, predictions, report.labels)


def against_the_past(current: Predictions, previous: Sequence[PreviousRun]) -> Past:
    """Compare with the latest of the earlier runs that share test documents."""
    sharing = 0
    comparisons: list[PastComparison] = []
    for earlier in sorted(previous, key=lambda run: run.run, reverse=True):
        other = earlier.read().without_baseline
        joined = _join(current, other, f"run {earlier.run} ")
        if joined is None:
            continue
        sharing += 1
        if len(comparisons) < COMPARED_RUNS:
            comparisons.append(_compare(earlier, current, other, joined, f"run {earlier.run} ", every=False)[0])
    return Past(runs_on_this_test_set=sharing, comparisons=tuple(comparisons))


def score_history(
    run: int,
    current: Predictions,
    scores: Mapping[str, PastScore],
    changed: Sequence[str],
    previous: Sequence[PreviousRun],
) -> tuple[PastRun, ...]:
    """Macro-F1 by run on the test documents of `current`, by its labels: the latest earlier runs that share some, and this run.

    scores: of this run's models. changed: what it changed from the latest of `previous`.
    """
    found = [PastRun(run=run, common_documents=len(current), models=dict(scores), changed=tuple(changed))]
    for earlier in sorted(previous, key=lambda entry: entry.run, reverse=True)[:HISTORY_RUNS]:
        other = earlier.read().without_baseline
        joined = _join(replace(current, predicted={}, probability={}), other, "")
        if joined is None:
            continue
        resampled, models = resampled_f1(joined), dict[str, PastScore]()
        for model, ids in joined.predicted.items():
            f1 = label_scores(confusion_matrix(joined.truth, ids, len(joined.labels))).f1_macro
            models[model] = PastScore(f1_macro=f1, f1_macro_ci95=interval(f1, resampled[model]))
        found.append(PastRun(run=earlier.run, common_documents=len(joined), models=models, changed=earlier.changed))
    return tuple(reversed(found))


def compare_runs(a: PreviousRun, b: PreviousRun) -> RunComparison:
    """For `docml compare`. ReportError if the runs share no test document."""
    one, two = a.read().without_baseline, b.read().without_baseline
    name_a, name_b = (f"{run.experiment} run {run.run}" for run in (a, b))
    if a.experiment == b.experiment:
        name_a, name_b = f"run {a.run}", f"run {b.run}"
    one = replace(
        one,
        predicted={f"{name_a} {model}": ids for model, ids in one.predicted.items()},
        probability={f"{name_a} {model}": values for model, values in one.probability.items()},
    )
    joined = _join(one, two, f"{name_b} ")
    if joined is None:
        raise ReportError(
            f"{a.experiment} run {a.run} ({len(one)} test documents) and {b.experiment} run {b.run} ({len(two)}) share none; "
            "expected runs whose test splits overlap, such as runs of one experiment with equal SPLIT and SPLIT_SEED"
        )
    comparison, f1 = _compare(b, one, two, joined, f"{name_b} ", every=True)
    return RunComparison(
        a=name_a,
        b=name_b,
        common_documents=len(joined),
        only_a_documents=len(one) - len(joined),
        only_b_documents=len(two) - len(joined),
        relabelled=comparison.relabelled,
        f1_macro=f1,
        comparison=comparison,
    )


def _join(current: Predictions, other: Predictions, prefix: str) -> Predictions | None:
    """Both runs' models on their common documents, the other's named with the prefix. Labels and groups are the current run's."""
    _, ours, theirs = np.intersect1d(
        current.guids.astype(str), other.guids.astype(str), assume_unique=True, return_indices=True
    )
    if not len(ours):
        return None
    kept, also = current.take(ours), other.take(theirs)
    labels = (*current.labels, *(label for label in other.labels if label not in current.labels))
    number = {label: index for index, label in enumerate(labels)}
    renumbered = np.array([number[label] for label in other.labels], dtype=np.int64)
    return replace(
        kept,
        labels=labels,
        predicted={**kept.predicted, **{prefix + model: renumbered[ids] for model, ids in also.predicted.items()}},
        probability={**kept.probability, **{prefix + model: values for model, values in also.probability.items()}},
    )


def _compare(
    earlier: PreviousRun, current: Predictions, other: Predictions, joined: Predictions, prefix: str, *, every: bool
) -> tuple[PastComparison, dict[str, float]]:
    """every: all pairs across the runs; otherwise each of ours with its namesake, or with the other run's best."""
    f1 = {
        model: label_scores(confusion_matrix(joined.truth, ids, len(joined.labels))).f1_macro
        for model, ids in joined.predicted.items()
    }
    theirs = [prefix + model for model in other.models]
    best = max(theirs, key=lambda model: f1[model])
    if every:
        pairs = list(product(current.models, theirs))
    else:
        pairs = [(model, prefix + model if prefix + model in theirs else best) for model in current.models]
    compared = compare_pairs(joined, f1, resampled_f1(joined), pairs)
    relabelled, effects = _relabelled(joined, other, f1)
    comparison = PastComparison(
        experiment=earlier.experiment,
        run=earlier.run,
        common_documents=len(joined),
        pairs=tuple(compared),
        relabelled=relabelled,
        old_labels={model: effects[model] for pair in pairs for model in pair} if relabelled else {},
    )
    return comparison, f1


def _relabelled(joined: Predictions, other: Predictions, f1: Mapping[str, float]) -> tuple[int, dict[str, LabelEffect]]:
    """How many of the common documents had another label in the other run, and each model's score by those labels and by the new ones."""
    number = {label: index for index, label in enumerate(joined.labels)}
    old = dict(zip(other.guids, (number[other.labels[label]] for label in other.truth), strict=True))
    truth = np.array([old[guid] for guid in joined.guids], dtype=np.int64)
    return int((truth != joined.truth).sum()), {
        model: LabelEffect(
            before=label_scores(confusion_matrix(truth, ids, len(joined.labels))).f1_macro, after=f1[model]
        )
        for model, ids in joined.predicted.items()
    }
