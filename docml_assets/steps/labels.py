"""What people should look at: documents whose label looks wrong, and documents without a label that would teach the most."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from docml_assets.errors import ReportError
from docml_assets.steps.inference import EXCERPT_CHARACTERS, read_excerpts, text_of
from docml_assets.steps.preparation import read_labels, read_prepared, read_prepared_manifest
from docml_assets.tables import read_parquet
from docml_contract.file_names import matches
from docml_contract.names import (
    LABEL_ROWS,
    PREDICTION_SUFFIX,
    PREDICTIONS,
    PROBABILITY_SUFFIX,
    SUSPECTS_TABLE,
    UNIT_PREDICTIONS,
)
from docml_contract.units import document_guid
from resources.errors import ResourceError
from resources.store.manifests import read_finished, read_manifest, read_recorded

if TYPE_CHECKING:
    from docml_assets.steps.work import Work

DOUBTFUL_AT_ONCE = (
    20  # candidates for every document that is wanted: the most doubtful ones, of which the most different are taken
)

Row = dict[str, Any]


def read_suspects(work: "Work", limit: int | None) -> tuple[list[str], list[Row]]:
    """The run's label suspects, the most doubtful first, with excerpts; and the names of all columns, which a row need not have.

    Columns as in label_suspects.parquet, and `excerpt`; where the run has a report, `<model>` and `<model>_probability`: what each
    trained model says of the test documents among them. ReportError where the prepared data have none.
    """
    manifest = read_prepared_manifest(work)
    if SUSPECTS_TABLE not in {file.path for file in manifest.files}:
        raise ReportError(
            f"{work.describe()}: its prepared data have no {SUSPECTS_TABLE}, since BASELINE is false, no baseline could be fitted "
            "(the check label_suspects says why), or they were made before docml estimated label suspects; set BASELINE = true, "
            "or take the next run number with a changed encoder"
        )
    table = read_parquet(read_recorded(work.store, read_prepared(work).folder, manifest.file(SUSPECTS_TABLE)))
    rows: list[Row] = table.slice(0, limit).to_pylist()
    said = _answers(work)
    excerpts = read_excerpts(work)
    found = [{**row, **said.get(row["artifact_guid"], {}), "excerpt": excerpts(row["artifact_guid"])} for row in rows]
    models = list(next(iter(said.values()), {}))
    return [*table.column_names, *models, "excerpt"], found


def _answers(work: "Work") -> Mapping[str, Row]:
    """What the run's own models say, by test document (a unit, where units are the documents); nothing before there is a report."""
    manifest = read_manifest(work.store, work.place.inference)
    if manifest is None:
        return {}
    units = UNIT_PREDICTIONS in {entry.path for entry in manifest.files}
    entry = manifest.file(UNIT_PREDICTIONS if units else PREDICTIONS)
    table = read_parquet(read_recorded(work.store, work.place.inference, entry))
    models = [name for name in work.settings.model_names if name + PREDICTION_SUFFIX in table.column_names]
    return {
        document_guid(row["artifact_guid"], row.get("unit")): {
            key: value
            for name in models
            for key, value in (
                (name, row[name + PREDICTION_SUFFIX]),
                (name + PROBABILITY_SUFFIX, row[name + PROBABILITY_SUFFIX]),
            )
        }
        for row in table.to_pylist()
    }


def choose_next(table: pa.Table, count: int) -> npt.NDArray[np.int64]:
    """Rows of a table of predictions that are worth labelling: doubtful ones, and different from each other.

    Doubt is the margin between the two likeliest labels (Scheffer, Decomain, Wrobel 2001). Of the most doubtful, `count` × 20 of them,
    each next one is the farthest from those taken (Hellinger distance of the probabilities; Gonzalez 1985), so that not all lie on
    the border between the same two labels. Documents without an answer are not chosen.
    """
    answered = np.flatnonzero(np.array([value is not None for value in table["probabilities"].to_pylist()], dtype=bool))
    if not len(answered) or not count:
        return np.zeros(0, dtype=np.int64)
    values = np.array(table["probabilities"].take(pa.array(answered)).to_pylist(), dtype=np.float64)
    if values.shape[1] < 2:
        return answered[:count]
    ordered = np.sort(values, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    order = np.argsort(margins, kind="stable")[: count * DOUBTFUL_AT_ONCE]
    roots = np.sqrt(values[order])
    taken = [0]
    distance = np.linalg.norm(roots - roots[0], axis=1)
    while len(taken) < min(count, len(order)):
        distance[taken] = -1.0
        farthest = int(distance.argmax())
        taken.append(farthest)
        distance = np.minimum(distance, np.linalg.norm(roots - roots[farthest], axis=1))
    return answered[order[sorted(taken)]]


def read_next(work: "Work", count: int) -> list[Row]:
    """Up to `count` documents without a label that the run's models have classified, the most doubtful first.

    artifact_guid, prediction, probability, second_label and second_probability, excerpt. ReportError where nothing was classified yet,
    or everything that was has a label by now.
    """
    labels = read_labels(work)
    table = _classified(work)
    labelled = read_parquet(read_finished(work.store, work.place.reconciliation, LABEL_ROWS))["artifact_guid"]
    table = table.filter(pc.invert(pc.is_in(table["artifact_guid"], value_set=labelled.combine_chunks())))
    rows = choose_next(table, count)
    if not len(rows):
        raise ReportError(
            f"{work.describe()}: every document that it has classified has a label, or no answer; classify others: "
            f"docml predict {work.place.experiment} {work.place.number} --query 'SELECT artifact_guid …'"
        )
    found = []
    for row in table.take(pa.array(rows)).to_pylist():
        first, second = sorted(range(len(labels)), key=lambda index: -row["probabilities"][index])[:2]
        found.append(
            {
                "artifact_guid": row["artifact_guid"],
                "prediction": labels[first],
                "probability": row["probabilities"][first],
                "second_label": labels[second],
                "second_probability": row["probabilities"][second],
                "excerpt": _production_excerpt(work, row["artifact_guid"]),
            }
        )
    return found


def _classified(work: "Work") -> pa.Table:
    """All documents that this run's models have an answer for, each once, with its newest one."""
    folders = [work.place.prediction(name) for name in work.store.list_folders(work.place.predictions)]
    made = {folder: manifest for folder in folders if (manifest := read_manifest(work.store, folder)) is not None}
    if not made:
        raise ReportError(
            f"{work.describe()} has classified no documents yet, so none can be chosen: docml predict {work.place.experiment} "
            f"{work.place.number} --query 'SELECT artifact_guid …'"
        )
    tables = [
        read_parquet(read_recorded(work.store, folder, manifest.file(PREDICTIONS))).select(
            ["artifact_guid", "probabilities"]
        )
        for folder, manifest in sorted(made.items(), key=lambda entry: entry[1].created_at, reverse=True)
    ]
    return newest_answers(tables)


def newest_answers(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows with probabilities, one a document, by GUID: of the first table that has one. tables: the newest first."""
    table = pa.concat_tables(tables)
    table = table.filter(table["probabilities"].is_valid())
    rows: dict[str, int] = {}
    for row, guid in enumerate(table["artifact_guid"].to_pylist()):
        rows.setdefault(guid, row)
    return table.take(pa.array([rows[guid] for guid in sorted(rows)], pa.int64()))


def _production_excerpt(work: "Work", guid: str) -> str:
    """The beginning of the first text file of a document in production; "" where it is not there (any more)."""
    names = [stored.key for stored in work.production.list(guid)]
    for entry in work.settings.model_input_files:
        for key in (key for key in names if matches(key.split("/")[-1], entry)):
            try:
                text = text_of(work.production.get(key))
            except ResourceError:
                continue
            if text:
                return text[:EXCERPT_CHARACTERS]
    return ""


def label_studio_tasks(rows: Sequence[Row]) -> list[Row]:
    """Tasks in Label Studio's import format: the document's data, and the likely label as a prediction of the choice `label`."""
    return [
        {
            "data": {"text": row["excerpt"], **{key: value for key, value in row.items() if key != "excerpt"}},
            "predictions": [
                {
                    "model_version": "docml",
                    "score": row.get("likely_probability", row.get("probability")),
                    "result": [
                        {
                            "from_name": "label",
                            "to_name": "text",
                            "type": "choices",
                            "value": {"choices": [row.get("likely_label", row.get("prediction"))]},
                        }
                    ],
                }
            ],
        }
        for row in rows
    ]
