"""What a report shows besides scores: mistakes with excerpts, disagreements, errors by length, learning curves, and its lineage."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
from scipy import stats

from docml_assets.report.comparison import disagreements
from docml_assets.report.predictions import GUID, Ids, Predictions
from docml_contract.names import TOKENS_SUFFIX

SHOWN_MISTAKES = 10  # a model
SHOWN_DISAGREEMENTS = 10
EXCERPT = 400  # characters
LENGTH_BINS = 10


@dataclass(frozen=True)
class ModelAnswer:
    """What one model said about a document."""

    model: str
    label: str
    probability: float
    right: bool


@dataclass(frozen=True)
class ShownDocument:
    """A document that the report shows."""

    guid: str
    label: str
    said: tuple[ModelAnswer, ...]
    excerpt: str


@dataclass(frozen=True)
class LengthBin:
    """Documents of about one length: their number, and the share that is labelled wrongly with its 95 % Wilson interval."""

    shortest: int
    longest: int
    count: int
    error: float
    low: float
    high: float

    @property
    def middle(self) -> float:
        """Where it lies on an axis of lengths."""
        return (self.shortest + self.longest) / 2


@dataclass(frozen=True)
class Evidence:
    """By model where a model's name is the key."""

    mistakes: Mapping[str, tuple[ShownDocument, ...]]  # the most confident ones first
    disagreements: tuple[ShownDocument, ...]
    lengths: Mapping[str, tuple[LengthBin, ...]]
    curves: Mapping[str, Mapping[str, list[tuple[float, float]]]]  # model -> metric -> (epoch, value)

    @classmethod
    def gather(
        cls,
        predictions: Predictions,
        documents: pa.Table,
        history: Mapping[str, Sequence[Mapping[str, Any]]],
        excerpts: Callable[[str], str],
    ) -> "Evidence":
        """documents: documents.parquet of the inference job. history and excerpts: as `build.build_report` takes them."""
        texts: dict[str, str] = {}

        def excerpt(guid: str) -> str:
            if guid not in texts:
                text = " ".join("".join(char if char.isprintable() else " " for char in excerpts(guid)).split())
                texts[guid] = text if len(text) <= EXCERPT else text[:EXCERPT].rsplit(" ", 1)[0] + " …"
            return texts[guid]

        return cls(
            mistakes={
                model: tuple(
                    _shown(predictions, row, (model,), excerpt) for row in confident_mistakes(predictions, model)
                )
                for model in predictions.models
            },
            disagreements=tuple(
                _shown(predictions, row, predictions.models, excerpt)
                for row in disagreements(predictions)[:SHOWN_DISAGREEMENTS]
            ),
            lengths={model: error_by_length(predictions, model, documents) for model in predictions.models},
            curves={model: _curves(rows) for model, rows in history.items() if model in predictions.predicted},
        )


@dataclass(frozen=True)
class JobLine:
    """One job of the run."""

    step: str
    name: str
    model: str | None = None
    seconds: float | None = None
    cost_usd: float | None = None  # where the instance's price is known


@dataclass(frozen=True)
class Lineage:
    """Where a report comes from: when its run was claimed (UTC, ISO 8601) and what started it at its beginning, the rest at its end."""

    data_versions: Mapping[str, str] = field(default_factory=dict)  # asset -> data version
    hashes: Mapping[str, str] = field(default_factory=dict)  # what it is of -> sha256 or git revision
    jobs: tuple[JobLine, ...] = ()
    claimed: tuple[str, str] | None = None

    @property
    def seconds(self) -> float:
        """All jobs' durations, where they are known."""
        return sum(job.seconds or 0.0 for job in self.jobs)

    @property
    def cost_usd(self) -> float | None:
        """All jobs' cost; None where no job's is known."""
        known = [job.cost_usd for job in self.jobs if job.cost_usd is not None]
        return sum(known) if known else None


def confident_mistakes(predictions: Predictions, model: str) -> Ids:
    """Positions of the model's most confident mistakes; ties in the order of the GUIDs."""
    wrong = np.flatnonzero(predictions.predicted[model] != predictions.truth)
    order = np.argsort(-predictions.probability[model][wrong], kind="stable")
    return wrong[order][:SHOWN_MISTAKES]


def error_by_length(predictions: Predictions, model: str, documents: pa.Table) -> tuple[LengthBin, ...]:
    """Error in up to ten bins of equally many documents by token count; empty where lengths are not known."""
    column = model + TOKENS_SUFFIX
    if column not in documents.column_names:
        return ()
    length_of = dict(zip(documents[GUID].to_pylist(), documents[column].to_pylist(), strict=True))
    lengths = np.array([length_of.get(guid) or 0 for guid in predictions.guids], dtype=np.int64)
    wrong = predictions.predicted[model] != predictions.truth
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_BINS + 1)[1:-1], method="higher"))
    which = np.searchsorted(edges, lengths, side="right")
    bins = []
    for index in np.unique(which):
        inside = which == index
        count, errors = int(inside.sum()), int(wrong[inside].sum())
        wilson = stats.binomtest(errors, count).proportion_ci(0.95, method="wilson")
        inner = lengths[inside]
        bins.append(
            LengthBin(int(inner.min()), int(inner.max()), count, errors / count, float(wilson.low), float(wilson.high))
        )
    return tuple(bins)


def _shown(predictions: Predictions, row: int, models: Sequence[str], excerpt: Callable[[str], str]) -> ShownDocument:
    guid = str(predictions.guids[row])
    return ShownDocument(
        guid=guid,
        label=predictions.labels[predictions.truth[row]],
        said=tuple(
            ModelAnswer(
                model=model,
                label=predictions.labels[predictions.predicted[model][row]],
                probability=float(predictions.probability[model][row]),
                right=bool(predictions.predicted[model][row] == predictions.truth[row]),
            )
            for model in models
        ),
        excerpt=excerpt(guid),
    )


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The numbers of a history by metric: (epoch, value); what is not a finite number is left out."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        epoch = row.get("epoch")
        if not _is_number(epoch):
            continue
        for metric, value in row.items():
            if metric != "epoch" and _is_number(value):
                curves.setdefault(metric, []).append((float(epoch), float(value)))
    return curves


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
