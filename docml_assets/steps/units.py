"""From answers about units to answers about their artifacts, by the use case's `combine` or as their mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from docml_assets.steps.answers import SplitAnswers
from docml_assets.steps.preparation import read_labels
from docml_assets.steps.work import Work
from docml_contract.names import (
    BASELINE,
    PREDICTION_SUFFIX,
    PROBABILITIES_SUFFIX,
    PROBABILITY_SUFFIX,
    TOKENS_SUFFIX,
)
from docml_contract.policy import Policy
from docml_contract.units import artifact_of, by_artifact, most_frequent, split_guid
from docml_contract.use_cases import UseCaseCode, UseCaseWorker

GUID, LABEL, UNIT = "artifact_guid", "label", "unit"
Probabilities = dict[str, list[float]]


@dataclass(frozen=True)
class CombinedAnswers:
    """What a report is made of where units are the documents: answers and baseline.parquet about artifacts."""

    answers: SplitAnswers
    baseline: pa.Table | None


def combine_answers(work: Work, answers: SplitAnswers, baseline: pa.Table | None) -> CombinedAnswers:
    """Of the models' answers, and the baseline's, on units. UseCaseError says what is wrong with `combine`."""
    from docml_assets.reconcile.process import open_use_case  # polars loads where it is used

    assert work.use_case is not None
    labels, models = read_labels(work), work.settings.model_names
    work.reporter.say(f"combining the answers about {answers.predictions.num_rows:,} units")
    with open_use_case(work.use_case.code(units=True), work.environment) as worker:
        documents = _combined(worker, labels, models, answers.documents)
        validation = answers.validation
        if validation is not None:
            validation = _combined(worker, labels, models, validation)
        if baseline is not None:
            baseline = _combined_baseline(worker, labels, answers.predictions, baseline)
    columns: dict[str, Any] = {name: documents[name] for name in (GUID, LABEL)}
    for model in models:
        columns |= _best(model, labels, documents[model + PROBABILITIES_SUFFIX].to_pylist())
    return CombinedAnswers(
        replace(answers, predictions=pa.table(columns), documents=documents, validation=validation), baseline
    )


def _combined(worker: UseCaseWorker, labels: Sequence[str], models: Sequence[str], documents: pa.Table) -> pa.Table:
    """documents.parquet of artifacts: the label that most units have, combined probabilities, all units' tokens."""
    rows_of = by_artifact(documents[GUID].to_pylist())
    truth = documents[LABEL].to_pylist()
    columns: dict[str, Any] = {
        GUID: pa.array(rows_of, pa.string()),
        LABEL: pa.array([most_frequent([truth[row] for row in rows]) for rows in rows_of.values()], pa.string()),
    }
    for model in models:
        answers = combine_units(
            worker, labels, documents[GUID].to_pylist(), documents[model + PROBABILITIES_SUFFIX].to_pylist()
        )
        columns[model + PROBABILITIES_SUFFIX] = pa.array(list(answers.values()), pa.list_(pa.float32()))
        if model + TOKENS_SUFFIX in documents.column_names:
            tokens = documents[model + TOKENS_SUFFIX].to_pylist()
            sums = [sum(tokens[row] for row in rows) for rows in rows_of.values()]
            columns[model + TOKENS_SUFFIX] = pa.array(sums, pa.int32())
    return pa.table(columns).sort_by(GUID)


def combine_units(
    worker: UseCaseWorker, labels: Sequence[str], guids: Sequence[str], probabilities: Sequence[Sequence[float]]
) -> Probabilities:
    """Artifact -> its probabilities, in the order in which artifacts first appear among `guids`, the units' GUIDs as documents."""
    units: dict[str, dict[str, Sequence[float]]] = {}
    for guid, values in zip(guids, probabilities, strict=True):
        artifact, unit = split_guid(guid)
        units.setdefault(artifact, {})[str(unit)] = values
    return worker.combine(labels, units)


def _best(model: str, labels: Sequence[str], probabilities: Sequence[Sequence[float]]) -> dict[str, pa.Array]:
    values = np.array(probabilities, dtype=np.float32)
    best = values.argmax(axis=1)
    return {
        model + PREDICTION_SUFFIX: pa.array([labels[index] for index in best], pa.string()),
        model + PROBABILITY_SUFFIX: pa.array(values[np.arange(len(best)), best]),
    }


def _combined_baseline(
    worker: UseCaseWorker, labels: Sequence[str], predictions: pa.Table, baseline: pa.Table
) -> pa.Table | None:
    """baseline.parquet of the test split's artifacts; None where it lacks a unit."""
    tested = baseline.filter(pc.is_in(baseline[GUID], value_set=predictions[GUID].combine_chunks()))
    if tested.num_rows != predictions.num_rows:
        return None
    answers = combine_units(worker, labels, tested[GUID].to_pylist(), tested["probabilities"].to_pylist())
    found = _best(BASELINE, labels, list(answers.values()))
    return pa.table(
        {
            GUID: pa.array(answers, pa.string()),
            "prediction": found[BASELINE + PREDICTION_SUFFIX],
            "probability": found[BASELINE + PROBABILITY_SUFFIX],
            "probabilities": pa.array(list(answers.values()), pa.list_(pa.float32())),
        }
    )


def combine_predictions(
    code: UseCaseCode, environment: Mapping[str, str], labels: Sequence[str], units: pa.Table, policy: Policy | None
) -> pa.Table:
    """A table of predictions about artifacts, by GUID, from one about their units. policy: decides what is accepted.

    Units without an answer are left out of their artifact's; an artifact none of whose units has one has its first unit's error.
    """
    from docml_assets.reconcile.process import open_use_case  # polars loads where it is used

    answered = units.filter(pc.is_null(units["error"]))
    with open_use_case(code, environment) as worker:
        found = combine_units(worker, labels, answered[GUID].to_pylist(), answered["probabilities"].to_pylist())
    tokens: dict[str, int] = {}
    for guid, count in zip(answered[GUID].to_pylist(), answered["tokens"].to_pylist(), strict=True):
        if count is not None:
            tokens[artifact_of(guid)] = tokens.get(artifact_of(guid), 0) + count
    errors: dict[str, str] = {}
    for guid, error in zip(units[GUID].to_pylist(), units["error"].to_pylist(), strict=True):
        artifact, unit = split_guid(guid)
        if artifact not in found:
            errors.setdefault(artifact, f"{unit}: {error}" if unit else error)
    rows: list[dict[str, Any]] = [{GUID: guid, "error": error} for guid, error in errors.items()]
    for guid, values in found.items():
        precise = np.array(values, dtype=np.float32)
        best = int(precise.argmax())
        rows.append(
            {
                GUID: guid,
                "prediction": labels[best],
                "probability": float(precise[best]),
                "probabilities": values,
                "accepted": bool(policy.accepts(precise.astype(np.float64))) if policy is not None else None,
                "tokens": tokens.get(guid),
            }
        )
    return pa.Table.from_pylist(rows, schema=units.schema).sort_by(GUID)


def units_with_known(asked: pa.Table, known: Sequence[pa.Table]) -> pa.Table:
    """unit_predictions.parquet: of what was asked the rows of units, and those of earlier such tables."""
    of_units = asked.filter(pc.match_substring(asked[GUID], "/")).drop_columns(["accepted"])
    table = with_units(of_units)
    return pa.concat_tables([table, *(each.select(table.column_names).cast(table.schema) for each in known)]).sort_by(
        [(GUID, "ascending"), (UNIT, "ascending")]
    )


def with_units(table: pa.Table) -> pa.Table:
    """The table with a column `unit` behind artifact_guid, in the order of both."""
    pairs = [split_guid(guid) for guid in table[GUID].to_pylist()]
    named = table.set_column(0, GUID, pa.array([artifact for artifact, _ in pairs], pa.string()))
    return named.add_column(1, UNIT, pa.array([unit for _, unit in pairs], pa.string())).sort_by(
        [(GUID, "ascending"), (UNIT, "ascending")]
    )
