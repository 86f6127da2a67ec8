"""The same documents, another run: this run's models against earlier ones, and any two runs against each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pyarrow as pa

from docml_assets.errors import ReportError
from docml_assets.report.comparison import compare_pairs
from docml_assets.report.predictions import Predictions, read_predictions
from docml_assets.report.schema import Past, PastComparison, read_report
from docml_assets.report.statistics import confusion_matrix, label_scores, resampled_f1
from docml_assets.tables import read_parquet
from docml_contract.names import PREDICTIONS, RunPlace
from resources.store import Store

COMPARED_RUNS = 3  # the latest; each costs a bootstrap of its own


@dataclass(frozen=True)
class PreviousRun:
    """A finished run with an inference report."""

    experiment: str
    run: int
    predictions: pa.Table  # its predictions.parquet
    labels: tuple[str, ...]  # `labels` of its report.json

    def read(self) -> Predictions:
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
    key = f"{place.inference}/{PREDICTIONS}"
    predictions = read_parquet(store.get(key), store.uri(key))
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
    labels_b = dict(zip(two.guids, (two.labels[label] for label in two.truth), strict=True))
    changed = sum(
        labels_b[guid] != joined.labels[label] for guid, label in zip(joined.guids, joined.truth, strict=True)
    )
    return RunComparison(
        a=name_a,
        b=name_b,
        common_documents=len(joined),
        only_a_documents=len(one) - len(joined),
        only_b_documents=len(two) - len(joined),
        relabelled=changed,
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
    comparison = PastComparison(
        experiment=earlier.experiment, run=earlier.run, common_documents=len(joined), pairs=tuple(compared)
    )
    return comparison, f1
