"""Do the report's intervals and verdicts keep their promises? 2,000 simulated test splits each, through the report's own code.

Two models are drawn with known chances of being right, so that their true macro-F1 is known: how often does the 95 % interval hold
it, how often does the verdict name a winner among equals, how often does it find the better one? Then the same of models with three
seeds each, whose true scores differ from seed to seed.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from docml_assets.report.comparison import compare_pairs
from docml_assets.report.predictions import Predictions
from docml_assets.report.schema import NO_DIFFERENCE
from docml_assets.report.seeds import SeedSample, judge_pairs, mean_interval
from docml_assets.report.statistics import confusion_matrix, interval, label_scores, resampled_f1

SIMULATIONS = 2000
BOTH_WRONG = 0.1


@dataclass(frozen=True)
class Population:
    """Documents of k labels, equally frequent or ∝ 1/k, and the shares that only one of two models has right."""

    documents: int
    labels: int
    skewed: bool
    only_a: float
    only_b: float

    @property
    def frequencies(self) -> np.ndarray[Any, Any]:
        weights = 1 / np.arange(1, self.labels + 1) if self.skewed else np.ones(self.labels)
        return np.asarray(weights / weights.sum())

    @property
    def true_f1(self) -> float:
        """Macro-F1 of model a among all documents there could be; its mistakes are spread evenly over the other labels."""
        accuracy = 1 - BOTH_WRONG - self.only_b
        chances = np.full((self.labels, self.labels), (1 - accuracy) / (self.labels - 1))
        np.fill_diagonal(chances, accuracy)
        joint = self.frequencies[:, None] * chances
        return float((2 * np.diag(joint) / (joint.sum(axis=0) + joint.sum(axis=1))).mean())

    def draw(self, random: np.random.Generator) -> Predictions:
        truth = random.choice(self.labels, self.documents, p=self.frequencies)
        wrong = [(truth + random.integers(1, self.labels, self.documents)) % self.labels for _ in range(2)]
        case = random.choice(
            4, self.documents, p=[1 - self.only_a - self.only_b - BOTH_WRONG, self.only_a, self.only_b, BOTH_WRONG]
        )
        return Predictions(
            guids=np.arange(self.documents),
            labels=tuple(map(str, range(self.labels))),
            truth=truth,
            predicted={"a": np.where(case < 2, truth, wrong[0]), "b": np.where(case % 2 == 0, truth, wrong[1])},
            probability={},
            groups=None,
        )


def simulate(population: Population, seeds: range) -> np.ndarray[Any, Any]:
    """One row a simulation: whether model a's interval holds its true score, whether a was named better, whether b was."""
    rows = []
    for seed in seeds:
        predictions = population.draw(np.random.default_rng([population.documents, population.labels, seed]))
        f1 = {
            model: label_scores(confusion_matrix(predictions.truth, ids, population.labels)).f1_macro
            for model, ids in predictions.predicted.items()
        }
        resampled = resampled_f1(predictions)
        low, high = interval(f1["a"], resampled["a"])
        (pair,) = compare_pairs(predictions, f1, resampled)
        rows.append((low <= population.true_f1 <= high, pair.verdict == "a", pair.verdict == "b"))
        assert pair.verdict in ("a", "b", NO_DIFFERENCE)
    return np.array(rows)


def simulate_coverage(documents: int, labels: int, *, skewed: bool, simulations: int) -> float:
    """Share of the 95 % intervals that hold the true macro-F1."""
    return float(simulate(Population(documents, labels, skewed, 0.1, 0.1), range(simulations))[:, 0].mean())


def simulate_verdicts(only_a: float, only_b: float, simulations: int) -> float:
    """Share of the verdicts at 400 documents of 4 labels that name a winner: any among equals, else a."""
    found = simulate(Population(400, 4, False, only_a, only_b), range(simulations))
    return float((found[:, 1:].any(axis=1) if only_a == only_b else found[:, 1]).mean())


@dataclass(frozen=True)
class SeededPopulation:
    """Two models with three seeds each on documents of four labels. A document may be hard for everyone, for all seeds of a model, or for one.

    spread: standard deviation of the seeds' true macro-F1, which is their accuracy, as labels and mistakes are spread evenly. mean: of the
    two models. SHARED, OWN: which part of what makes a document hard is the same for everyone, and for all seeds of a model.
    """

    documents: int
    spread: float
    mean: tuple[float, float] = (0.8, 0.8)

    LABELS, SEEDS, SHARED, OWN = 4, 3, 0.4, 0.3

    def draw(self, random: np.random.Generator) -> Predictions:
        truth = random.integers(0, self.LABELS, self.documents)
        hard = random.standard_normal(self.documents)
        predicted = {}
        for name, mean in zip("ab", self.mean, strict=True):
            own = random.standard_normal(self.documents)
            for seed in range(self.SEEDS):
                accuracy = np.clip(random.normal(mean, self.spread), 0.01, 0.99)
                noise = random.standard_normal(self.documents)
                difficulty = self.SHARED**0.5 * hard + self.OWN**0.5 * own + (1 - self.SHARED - self.OWN) ** 0.5 * noise
                wrong = (truth + random.integers(1, self.LABELS, self.documents)) % self.LABELS
                predicted[f"{name}{seed}"] = np.where(difficulty < stats.norm.ppf(accuracy), truth, wrong)
        labels = tuple(map(str, range(self.LABELS)))
        return Predictions(np.arange(self.documents), labels, truth, predicted, {}, None)


def simulate_seeds(population: SeededPopulation, seeds: range) -> np.ndarray[Any, Any]:
    """One row a simulation: whether the interval of model a's mean holds its true mean, whether a was named better, whether b was."""
    rows = []
    for seed in seeds:
        random = np.random.default_rng([population.documents, int(1000 * population.spread), seed])
        predictions = population.draw(random)
        scores = {
            name: label_scores(confusion_matrix(predictions.truth, ids, population.LABELS))
            for name, ids in predictions.predicted.items()
        }
        resampled = resampled_f1(predictions)
        samples = {
            model: SeedSample(
                f1=np.array([scores[name].f1_macro for name in scores if name[0] == model]),
                accuracy=np.array([scores[name].total_accuracy for name in scores if name[0] == model]),
                resampled=np.stack([resampled[name] for name in scores if name[0] == model]),
            )
            for model in "ab"
        }
        low, high = mean_interval(samples["a"])
        chosen = Predictions(
            predictions.guids, predictions.labels, predictions.truth,
            {"a": predictions.predicted["a0"], "b": predictions.predicted["b0"]}, {}, None,
        )  # fmt: skip
        f1 = {model: scores[f"{model}0"].f1_macro for model in "ab"}
        pairs = compare_pairs(chosen, f1, {model: resampled[f"{model}0"] for model in "ab"})
        (pair,) = judge_pairs(pairs, samples)
        rows.append((low <= population.mean[0] <= high, pair.verdict == "a", pair.verdict == "b"))
    return np.array(rows)


def run() -> list[dict[str, Any]]:
    equal, large, small = (
        _simulate_all(simulate, Population(documents, labels, skewed, 0.1, 0.1))
        for documents, labels, skewed in ((400, 4, False), (2000, 20, True), (400, 20, True))
    )
    better = _simulate_all(simulate, Population(400, 4, False, 0.14, 0.06))
    rows = []
    for name, found in (("400 x 4 equal", equal), ("2,000 x 20 skewed", large), ("400 x 20 skewed", small)):
        rows.append(_row(f"coverage of 95 % intervals, {name}", found[:, 0].mean()))
        rows.append(_row(f"false verdicts among equals, {name}", found[:, 1:].any(axis=1).mean()))
    rows.append(_row("better model found, 400 documents, .14 against .06", better[:, 1].mean()))
    rows.append(_row("worse model named better, .14 against .06", better[:, 2].mean()))
    for spread in (0.0, 0.02, 0.05):
        found = _simulate_all(simulate_seeds, SeededPopulation(400, spread))
        rows.append(
            _row(f"coverage of 95 % intervals of 3 seeds' mean, seeds differ by {spread:g}", found[:, 0].mean())
        )
        rows.append(
            _row(f"false verdicts among equals of 3 seeds, seeds differ by {spread:g}", found[:, 1:].any(axis=1).mean())
        )
    found = _simulate_all(simulate_seeds, SeededPopulation(400, 0.02, (0.88, 0.8)))
    rows.append(_row("better model found, 3 seeds that differ by .02, .88 against .80", found[:, 1].mean()))
    return rows


def _simulate_all(simulate: Callable[..., np.ndarray[Any, Any]], population: Any) -> np.ndarray[Any, Any]:
    """2,000 simulations, spread over the cores."""
    processes = len(os.sched_getaffinity(0))
    shares = [range(index, SIMULATIONS, processes) for index in range(processes)]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return np.concatenate(list(pool.map(simulate, [population] * processes, shares)))


def _row(metric: str, share: float) -> dict[str, Any]:
    return {
        "bench": "report_statistics",
        "metric": metric,
        "unit": "%",
        "ours": round(100 * float(share), 2),
        "peers": {},
        "ratio": None,
    }
