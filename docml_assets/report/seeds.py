"""Models that were trained once a seed: how far their scores lie apart, and which model is better whatever the seed.

A mean over seeds is uncertain for two reasons: other seeds would have trained other models, and other test documents would have scored
them otherwise. Seeds are readers and documents are cases of a multi-reader multi-case study, whose variance is that of Obuchowski and
Rockette (Communications in Statistics: Simulation and Computation 1995). With S seeds, whose scores have the variance s² on these documents:

    variance of the mean  =  s² / S  +  c        c: covariance of two seeds' scores over resamples of the documents (0 if negative)

s² holds what the documents do to each seed alone, c what they do to all seeds alike, so that nothing counts twice. The seeds of two models
have nothing to do with each other, so the variance of a difference of means has an s² / S of each, and of the documents what does not
strike both models alike: c of a, c of b, less twice the covariance of a's seeds with b's. The baseline is a model with one seed and s² = 0.

The parts are known with different certainty: s² / S like a t distribution with S - 1 degrees of freedom, the documents' like a normal one.
Two quantiles are usual: of a t distribution with Satterthwaite's degrees of freedom (Biometrics Bulletin 1946), which is too short where
few seeds say what they are, and the mean of the parts' own quantiles, weighted by the parts (Cochran and Cox, Experimental Designs, 2nd
edition 1957, 4.14), which is too long. Their mean is taken: it covers what it promises (bench/report_statistics.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from scipy import optimize, stats

from docml_assets.errors import ReportError
from docml_assets.report.comparison import ALPHA, holm
from docml_assets.report.predictions import Floats, Ids, Predictions, read_predictions
from docml_assets.report.schema import NO_DIFFERENCE, ModelSeeds, Pair, SeedDifference, SeedScore
from docml_assets.report.statistics import LEVEL, confusion_matrix, label_scores, resampled_f1
from docml_contract.names import BASELINE

LEAST_P = 1e-12  # below which nothing is told apart


@dataclass(frozen=True)
class SeedAnswers:
    """What the models answered on the test split, by seed, and how they were judged on the validation split.

    predictions: predictions.parquet of each seed, of all models. valid_f1: model -> seed -> macro-F1. chosen: model -> the run's seed.
    """

    predictions: Mapping[int, pa.Table]
    valid_f1: Mapping[str, Mapping[int, float]]
    chosen: Mapping[str, int]


@dataclass(frozen=True)
class SeedSample:
    """One model's scores: macro-F1 of every seed, float64[seeds], and in every resample of the documents, float64[seeds, resamples]."""

    f1: Floats
    accuracy: Floats
    resampled: Floats

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(self.f1.mean())

    @property
    def seeds_part(self) -> tuple[float, float]:
        """s² / S, the part of the mean's variance that the seeds make, and its degrees of freedom."""
        count = len(self.f1)
        return (float(self.f1.var(ddof=1) / count), count - 1) if count > 1 else (0.0, 1)


def sample_seeds(answers: SeedAnswers, read: Predictions) -> dict[str, SeedSample]:
    """The scores of every model and of the baseline, all on the same resamples. read: the run's predictions. ReportError."""
    predicted: dict[tuple[str, int | None], Ids] = {}
    for seed, table in answers.predictions.items():
        found = read_predictions(table, read.labels, f"predictions with seed {seed}")
        if found.guids.tolist() != read.guids.tolist():
            raise ReportError(f"predictions with seed {seed} are of other documents than the run's test split")
        predicted |= {(model, seed): ids for model, ids in found.predicted.items()}
    predicted |= {(model, None): ids for model, ids in read.predicted.items() if model == BASELINE}
    names = {f"{model}\0{seed}": ids for (model, seed), ids in predicted.items()}
    resampled = resampled_f1(replace(read, predicted=names, probability={}))
    everything = {key: resampled[name] for key, name in zip(predicted, names, strict=True)}
    scores = {key: label_scores(confusion_matrix(read.truth, ids, len(read.labels))) for key, ids in predicted.items()}
    return {
        model: SeedSample(
            f1=np.array([score.f1_macro for (name, _), score in scores.items() if name == model]),
            accuracy=np.array([score.total_accuracy for (name, _), score in scores.items() if name == model]),
            resampled=np.stack([values for (name, _), values in everything.items() if name == model]),
        )
        for model in read.models
    }


def model_seeds(answers: SeedAnswers, samples: Mapping[str, SeedSample]) -> dict[str, ModelSeeds]:
    """What the report says of each model's seeds."""
    said = {}
    for model, valid in answers.valid_f1.items():
        sample = samples[model]
        rows = zip(answers.predictions, sample.f1.tolist(), sample.accuracy.tolist(), strict=True)
        said[model] = ModelSeeds(
            scores=tuple(
                SeedScore(seed=seed, f1_macro=f1, accuracy=accuracy, valid_f1=valid[seed])
                for seed, f1, accuracy in rows
            ),
            chosen=answers.chosen[model],
            f1_macro_mean=sample.mean,
            f1_macro_sd=float(sample.f1.std(ddof=1)),
            f1_macro_mean_ci95=mean_interval(sample),
        )
    return said


Parts = Sequence[tuple[float, float]]  # variances, each with its degrees of freedom


def mean_interval(sample: SeedSample) -> tuple[float, float]:
    """95 % interval of the mean macro-F1 over all seeds and all documents of this kind."""
    parts = [sample.seeds_part, (max(0.0, _covariance(sample, sample)), np.inf)]
    reach = _reach(parts, 1 - LEVEL)
    return max(0.0, sample.mean - reach), min(1.0, sample.mean + reach)


def difference(a: SeedSample, b: SeedSample) -> SeedDifference:
    """Of the two means, with its interval and its p; p_holm is p until `judge_pairs` corrects it."""
    documents = _covariance(a, a) + _covariance(b, b) - 2 * _covariance(a, b)
    parts = [a.seeds_part, b.seeds_part, (max(0.0, documents), np.inf)]
    found, reach = a.mean - b.mean, _reach(parts, 1 - LEVEL)
    p = _p_value(abs(found), parts)
    return SeedDifference(f1_difference=found, f1_difference_ci95=(found - reach, found + reach), p=p, p_holm=p)


def judge_pairs(pairs: Sequence[Pair], samples: Mapping[str, SeedSample]) -> list[Pair]:
    """The pairs with the difference of the means over seeds. Its p, corrected over the pairs, gives the verdict instead of the
    comparison of the two chosen models."""
    found = [difference(samples[pair.a], samples[pair.b]) for pair in pairs]
    judged = []
    for pair, between, corrected in zip(pairs, found, holm([each.p for each in found]), strict=True):
        better = pair.a if between.f1_difference > 0 else pair.b
        judged.append(
            pair.model_copy(
                update={
                    "seeds": between.model_copy(update={"p_holm": corrected}),
                    "verdict": better if corrected < ALPHA else NO_DIFFERENCE,
                }
            )
        )
    return judged


def _covariance(a: SeedSample, b: SeedSample) -> float:
    """Mean covariance over the resamples: of two different seeds of one model, or of any two seeds of two models."""
    centred = [sample.resampled - sample.resampled.mean(axis=1, keepdims=True) for sample in (a, b)]
    table = centred[0] @ centred[1].T / (centred[0].shape[1] - 1)
    if a is not b or len(table) == 1:
        return float(table.mean())
    return float(table[~np.eye(len(table), dtype=bool)].mean())


def _reach(parts: Parts, level: float) -> float:
    """How far from 0 a sum with these parts of variance lies with the probability `level`, on either side."""
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    known = [(part, freedom) for part, freedom in parts if part]
    weighted = sum(part * stats.t.isf(level / 2, freedom) for part, freedom in known) / variance
    uncertain = sum(part**2 / freedom for part, freedom in known)
    satterthwaite = stats.t.isf(level / 2, variance**2 / uncertain if uncertain else np.inf)
    return float((weighted + satterthwaite) / 2 * variance**0.5)


def _p_value(found: float, parts: Parts) -> float:
    """The level at which `_reach` is what was found."""
    if found <= 0:
        return 1.0
    if _reach(parts, LEAST_P) <= found:
        return LEAST_P
    return float(optimize.brentq(lambda level: _reach(parts, level) - found, LEAST_P, 1.0))
