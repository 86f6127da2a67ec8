"""A table of predictions -> arrays of label ids, checked once, so that nothing after this meets a NaN or an unknown label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from docml_assets.errors import ReportError
from docml_contract.names import BASELINE, PREDICTION_SUFFIX, PROBABILITIES_SUFFIX, PROBABILITY_SUFFIX

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

GUID, LABEL, GROUP = "artifact_guid", "label", "group"


BASELINE_OF_TOKENS = "TF-IDF with logistic regression"
BASELINE_OF_VALUES = "logistic regression on pooled values"


@dataclass(frozen=True)
class Predictions:
    """What every model said about every test document.

    guids: str[n], sorted and unique. labels: in the order of their ids. truth: int64[n]. predicted: model -> int64[n].
    probability: model -> float64[n], of the predicted label. groups: int64[n] where documents of a group (SPLIT_BY) depend on
    each other, else None. baseline: what the model `baseline` is, in words.
    """

    guids: npt.NDArray[Any]
    labels: tuple[str, ...]
    truth: Ids
    predicted: Mapping[str, Ids]
    probability: Mapping[str, Floats]
    groups: Ids | None
    baseline: str = BASELINE_OF_TOKENS

    @property
    def models(self) -> tuple[str, ...]:
        """Names, in the order of the table."""
        return tuple(self.predicted)

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def without_baseline(self) -> "Predictions":
        """The run's own models."""
        return replace(
            self,
            predicted={model: ids for model, ids in self.predicted.items() if model != BASELINE},
            probability={model: values for model, values in self.probability.items() if model != BASELINE},
        )

    def take(self, rows: Ids) -> "Predictions":
        """The documents at these positions (ascending)."""
        return replace(
            self,
            guids=self.guids[rows],
            truth=self.truth[rows],
            predicted={model: ids[rows] for model, ids in self.predicted.items()},
            probability={model: values[rows] for model, values in self.probability.items()},
            groups=None if self.groups is None else _numbered(self.groups[rows].tolist()),
        )


def read_predictions(table: pa.Table, labels: Sequence[str], source: str) -> Predictions:
    """Read a `predictions.parquet`. ReportError, beginning with `source`, says what is wrong with it.

    labels: all labels that the models know; one that no test document has is fine.
    """
    missing = [name for name in (GUID, LABEL) if name not in table.column_names]
    models = model_names(table)
    if missing or not models:
        raise ReportError(
            f"{source}: found the columns {', '.join(table.column_names) or 'none'}; expected {GUID}, {LABEL} and, "
            f"by model, <model>{PREDICTION_SUFFIX} and <model>{PROBABILITY_SUFFIX}"
        )
    if table.num_rows == 0:
        raise ReportError(
            f"{source}: the test split is empty, so there is nothing to report; give SPLIT a test share above 0, or more documents"
        )
    if len(set(labels)) != len(labels):
        raise ReportError(f"{source}: found a label twice among {', '.join(labels)}; expected each once")
    table = table.sort_by(GUID)
    guids = np.asarray(table[GUID].to_pylist(), dtype=object)
    if len(set(guids)) != len(guids):
        raise ReportError(f"{source}: {len(guids) - len(set(guids))} documents appear twice; expected each GUID once")
    return Predictions(
        guids=guids,
        labels=tuple(labels),
        truth=_ids(table[LABEL], labels, f"{source}: column {LABEL}"),
        predicted={
            model: _ids(table[model + PREDICTION_SUFFIX], labels, f"{source}: column {model}{PREDICTION_SUFFIX}")
            for model in models
        },
        probability={
            model: _probabilities(table[model + PROBABILITY_SUFFIX], f"{source}: column {model}{PROBABILITY_SUFFIX}")
            for model in models
        },
        groups=_groups(table),
    )


def model_names(table: pa.Table) -> tuple[str, ...]:
    """The models of a table of predictions, in its order."""
    columns = set(table.column_names)
    names = (name.removesuffix(PREDICTION_SUFFIX) for name in table.column_names if name.endswith(PREDICTION_SUFFIX))
    return tuple(name for name in names if name + PROBABILITY_SUFFIX in columns)


def with_baseline(table: pa.Table, baseline: pa.Table) -> pa.Table:
    """The table with the columns of a further model, `baseline`, out of baseline.parquet; as it is, where that lacks a document."""
    row_of = {guid: row for row, guid in enumerate(baseline[GUID].to_pylist())}
    rows = [row_of.get(guid) for guid in table[GUID].to_pylist()]
    if None in rows:
        return table
    taken = baseline.take(pa.array(rows, pa.int64()))
    for column, suffix in (
        ("prediction", PREDICTION_SUFFIX),
        ("probability", PROBABILITY_SUFFIX),
        ("probabilities", PROBABILITIES_SUFFIX),
    ):
        if column in taken.column_names:
            table = table.append_column(BASELINE + suffix, taken[column])
    return table


def with_probabilities(table: pa.Table, documents: pa.Table) -> pa.Table:
    """The table with the columns of `documents` that hold every label's probability by model; as it is, where that lacks a document.

    They are lists of float32, in the order of the labels' ids. A model's column comes behind its others.
    """
    row_of = {guid: row for row, guid in enumerate(documents[GUID].to_pylist())}
    rows = [row_of.get(guid) for guid in table[GUID].to_pylist()]
    columns = [name for name in documents.column_names if name.endswith(PROBABILITIES_SUFFIX)]
    if None in rows:
        return table
    taken = documents.select(columns).take(pa.array(rows, pa.int64()))
    for name in columns:
        place = table.schema.get_field_index(name.removesuffix(PROBABILITIES_SUFFIX) + PROBABILITY_SUFFIX)
        if place >= 0 and name not in table.column_names:
            table = table.add_column(place + 1, name, taken[name].cast(pa.list_(pa.float32())))
    return table


def with_groups(table: pa.Table, groups: Mapping[str, str | None]) -> pa.Table:
    """The table with the column `group`; a document without one is a group of its own."""
    values = [groups.get(guid) for guid in table[GUID].to_pylist()]
    kept = table.drop_columns([GROUP]) if GROUP in table.column_names else table
    return kept.append_column(GROUP, pa.array(values, pa.string()))


def _ids(column: pa.ChunkedArray, labels: Sequence[str], source: str) -> Ids:
    found = pc.index_in(column.cast(pa.string()), value_set=pa.array(labels, pa.string()))
    if found.null_count:
        unknown = sorted({str(value) for value in column.to_pylist()} - set(labels))
        raise ReportError(
            f"{source}: found {', '.join(map(repr, unknown[:5]))}, expected one of the model's labels "
            f"{', '.join(map(repr, labels[:20]))}; the predictions belong to other prepared data than the labels"
        )
    return np.asarray(found.to_numpy(), dtype=np.int64)


def _probabilities(column: pa.ChunkedArray, source: str) -> Floats:
    values = np.asarray(column.to_numpy(), dtype=np.float64)
    wrong = ~((values >= 0) & (values <= 1 + 1e-6))
    if wrong.any():
        raise ReportError(
            f"{source}: {int(wrong.sum())} values such as {values[wrong][0]}, expected probabilities between 0 and 1; "
            "the model answered with NaN or infinity for these documents"
        )
    return np.minimum(values, 1.0)


def _groups(table: pa.Table) -> Ids | None:
    if GROUP not in table.column_names or table[GROUP].null_count == table.num_rows:
        return None
    # A null is a group of its own; the tuples keep a GUID from being mistaken for a group's value.
    keys = [
        ("group", value) if value is not None else ("document", guid)
        for guid, value in zip(table[GUID].to_pylist(), table[GROUP].cast(pa.string()).to_pylist(), strict=True)
    ]
    return _numbered(keys)


def _numbered(keys: Sequence[Any]) -> Ids:
    """0, 1, 2 … by first appearance."""
    number: dict[Any, int] = {}
    return np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)
