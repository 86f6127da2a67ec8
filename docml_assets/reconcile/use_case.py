"""A use case at work on label rows and file names: in a worker process, checked, and counted."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from io import BytesIO

import polars as pl
import pyarrow as pa

from docml_assets.experiment.use_case import MAPPED, UseCase
from docml_assets.reconcile.findings import (
    MAX_ROWS,
    NothingLeft,
    ReconciliationError,
    ReconciliationFindings,
    findings_table,
)
from docml_assets.reconcile.labels import as_texts, label_refusal, named_columns
from docml_assets.reconcile.process import open_use_case
from docml_assets.tables import parquet_bytes
from docml_contract.base import UseCaseError
from docml_contract.sandbox import TIMEOUT_SECONDS
from docml_contract.units import most_frequent, units_in
from docml_contract.use_cases import LABELLED, ROWS, UseCaseWorker
from resources.label_values import TEXT_COLUMNS, as_text

UNIT = "unit"
UNIT_COLUMNS = ["artifact_guid", UNIT, "label"]


@dataclass
class UseCaseAtWork:
    """What a use case does in one reconciliation. units: artifact_guid, unit, label of what `labels` named; None where it named none."""

    use_case: UseCase
    environment: Mapping[str, str]
    timeout: float = TIMEOUT_SECONDS
    units: pl.DataFrame | None = None
    _chosen: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = field(default_factory=dict)

    def label(self, table: pa.Table, findings: ReconciliationFindings) -> pa.Table:
        """The rows of LABELS_QUERY as the use case wants them, one an artifact; what it changed is counted. ReconciliationError."""
        table = named_columns(table)
        rows = pl.DataFrame(pl.from_arrow(table))
        labelled, returned = rows, rows.height
        if self.use_case.name == MAPPED:
            labelled = _mapped(self.use_case, rows)
            returned = labelled.height
        elif "labels" in self.use_case.functions:
            labelled = self._by_function(table)
            returned = labelled.height
            if UNIT in labelled.columns:
                self.units = _units(self._says("labels"), labelled)
                findings.funnel["use case: units"] = self.units.height
                labelled = _one_row_an_artifact(labelled, self.units)
        _count(rows, labelled, findings, self.use_case)
        findings.funnel["use case: rows out"] = returned
        return labelled.to_arrow()

    def _says(self, function: str) -> str:
        return f"{function} of the use case {self.use_case.name}"

    def _worker(self) -> AbstractContextManager[UseCaseWorker]:
        return open_use_case(self.use_case.code(units=False), self.environment, self.timeout)

    def _by_function(self, table: pa.Table) -> pl.DataFrame:
        try:
            with self._worker() as worker:
                answer = worker.call("labels", {ROWS: parquet_bytes(table)}, LABELLED)
        except UseCaseError as error:
            raise ReconciliationError(str(error)) from error
        return _checked(self._says("labels"), table, answer)

    def choose(self, rows: pl.DataFrame, files: pl.DataFrame) -> pl.DataFrame:
        """Of the artifacts' production files those that `files` takes. rows and files: sorted by artifact_guid. ReconciliationError."""
        if "files" not in self.use_case.functions:
            return files
        names = dict(files.group_by("artifact_guid", maintain_order=True).agg("file").iter_rows())
        new = [
            (row, tuple(names[row["artifact_guid"]]))
            for row in rows.iter_rows(named=True)
            if row["artifact_guid"] in names
            and (row["artifact_guid"], tuple(names[row["artifact_guid"]])) not in self._chosen
        ]
        try:
            with self._worker() as worker:
                answers = worker.files([(json.loads(json.dumps(row, default=as_text)), own) for row, own in new])
        except UseCaseError as error:
            raise ReconciliationError(str(error)) from error
        for (row, own), chosen in zip(new, answers, strict=True):
            self._chosen[row["artifact_guid"], own] = chosen
        kept = ((guid, file) for guid, own in names.items() for file in self._chosen[guid, tuple(own)])
        schema = {"artifact_guid": pl.String, "file": pl.String}
        return files.join(pl.DataFrame(kept, schema, orient="row"), on=list(schema), how="semi", maintain_order="left")

    def units_of(
        self, artifacts: pl.DataFrame, table: pa.Table, entries: Sequence[str], findings: ReconciliationFindings
    ) -> pa.Table | None:
        """UNIT_COLUMNS of the artifacts' units, in the order of artifacts and units; None where artifacts are the documents.

        artifacts: artifact_guid, label. table: reconciled_manifest. entries: MODEL_INPUT_FILES. NothingLeft where there is no unit.
        """
        if self.units is None and not self.use_case.makes_units:
            return None
        files = dict(pl.DataFrame(pl.from_arrow(table)).group_by("artifact_guid").agg("file").iter_rows())
        found = {guid: units_in(files.get(guid, ()), entries) for guid in artifacts["artifact_guid"]}
        if self.units is None:
            label_of = dict(artifacts.select("artifact_guid", "label").iter_rows())
            rows = [(guid, unit, label_of[guid]) for guid, own in found.items() for unit in own]
        else:
            named: dict[str, dict[str, str]] = {}
            for guid, unit, label in self.units.iter_rows():
                named.setdefault(guid, {})[unit] = label
            rows = [
                (guid, unit, named[guid][unit]) for guid, own in found.items() for unit in own if unit in named[guid]
            ]
            lost = [(guid, unit) for guid in found for unit in named[guid] if unit not in found[guid]]
            findings.funnel["use case: units without files"] = len(lost)
            findings.units_without_files = findings_table(
                "units_without_files", ({"artifact_guid": guid, "unit": unit} for guid, unit in lost)
            )
        with_units = {guid for guid, _, _ in rows}
        findings.funnel["use case: artifacts without units"] = len(found) - len(with_units)
        findings.funnel["use case: units"] = len(rows)
        if not rows:
            raise NothingLeft(_why_there_is_no_unit(found, self.units, entries))
        return pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(UNIT_COLUMNS)})


def _why_there_is_no_unit(
    found: Mapping[str, Sequence[str]], named: pl.DataFrame | None, entries: Sequence[str]
) -> str:
    guid = next(iter(found))
    if not any(found.values()):
        return (
            f"no artifact has a unit: of {guid!r} and the others no file fits a pattern of MODEL_INPUT_FILES = {', '.join(entries)}; "
            "expected a pattern such as page_*.png, whose files are the units: correct it, or let process_func make such files"
        )
    assert named is not None
    wanted = named.filter(pl.col("artifact_guid") == guid)[UNIT].to_list()
    return (
        f"labels names units that no artifact has, {', '.join(wanted[:3])} of {guid!r} for example, which has "
        f"{', '.join(found[guid][:3]) or 'none'}; expected file names without what follows the last dot"
    )


def _mapped(use_case: UseCase, rows: pl.DataFrame) -> pl.DataFrame:
    label = pl.col("label").cast(pl.String)
    dropped = [old for old, new in use_case.label_map.items() if not new]
    kept = rows.filter(~label.is_in(dropped).fill_null(False))
    return kept.with_columns(label.replace(use_case.label_map)) if use_case.label_map else kept


def _checked(what: str, given: pa.Table, answer: bytes) -> pl.DataFrame:
    """What `labels` returned: the same artifacts or fewer, each as often as it came (but for units), with the columns that are needed."""
    try:
        rows = pl.read_parquet(BytesIO(answer))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ReconciliationError(f"{what} left rows that cannot be read: {str(error).splitlines()[0]}") from error
    missing = [name for name in TEXT_COLUMNS if name not in rows.columns]
    if missing:
        raise ReconciliationError(
            f"{what} returned the columns {', '.join(rows.columns)}; expected {', '.join(missing)} too: return the rows that it got"
        )
    before = pl.DataFrame(pl.from_arrow(given.select(["artifact_guid"])))
    counts = (
        rows.select(pl.col("artifact_guid").cast(pl.String))
        .group_by("artifact_guid")
        .len()
        .join(
            before.cast(pl.String).group_by("artifact_guid").len("came"),
            on="artifact_guid",
            how="left",
            nulls_equal=True,
        )
    )
    for guid, returned, came in counts.sort("artifact_guid").iter_rows():
        if came is None:
            raise ReconciliationError(
                f"{what} returned rows for {guid!r}, which LABELS_QUERY does not yield; expected rows that it got, or fewer"
            )
        if returned > came and UNIT not in rows.columns:
            raise ReconciliationError(
                f"{what} returned {returned} rows for {guid!r}, of which it got {came}; several need a column unit that tells them apart"
            )
    return rows


def _units(what: str, rows: pl.DataFrame) -> pl.DataFrame:
    """UNIT_COLUMNS of rows of units. ReconciliationError where a unit has no name or no usable label, or comes twice."""
    units = rows.select(as_texts(rows[name]) for name in UNIT_COLUMNS)
    for guid, _, label in units.filter(pl.col(UNIT).fill_null("").str.strip_chars() == "").head(1).iter_rows():
        raise ReconciliationError(
            f"{what} returned a row of {guid!r} (label {label!r}) without a unit; expected the unit's name in each row: leave the others out"
        )
    refused = units.with_columns(label_refusal().alias("reason")).filter(pl.col("reason").is_not_null())
    for guid, unit, reason in refused.select("artifact_guid", UNIT, "reason").head(1).iter_rows():
        raise ReconciliationError(
            f"{what} gave the unit {unit!r} of {guid!r} no usable label ({reason}); expected one in each row: leave the others out"
        )
    twice = units.select("artifact_guid", UNIT)
    for guid, unit in twice.filter(twice.is_duplicated()).head(1).iter_rows():
        raise ReconciliationError(f"{what} returned the unit {unit!r} of {guid!r} twice; expected each once")
    return units


def _one_row_an_artifact(rows: pl.DataFrame, units: pl.DataFrame) -> pl.DataFrame:
    """The first row of each artifact, with the label that most of its units have, and without the column of units."""
    labels: dict[str | None, list[str]] = {}
    for guid, _, label in units.iter_rows():
        labels.setdefault(guid, []).append(label)
    first = (
        rows.drop(UNIT)
        .with_columns(as_texts(rows["artifact_guid"]))
        .unique("artifact_guid", keep="first", maintain_order=True)
    )
    return first.with_columns(
        pl.Series("label", [most_frequent(labels[guid]) for guid in first["artifact_guid"]], dtype=pl.String)
    )


def _changes(rows: pl.DataFrame, labelled: pl.DataFrame) -> Iterator[pl.DataFrame]:
    key = ["artifact_guid", "label"]
    for frame in (rows, labelled):
        yield frame.select(pl.col(key).cast(pl.String)).unique("artifact_guid", keep="first", maintain_order=True)


def _count(rows: pl.DataFrame, labelled: pl.DataFrame, findings: ReconciliationFindings, use_case: UseCase) -> None:
    """Rows before and after, and every change of a label, the most frequent first."""
    before, after = _changes(rows, labelled)
    both = before.join(after.rename({"label": "becomes"}), on="artifact_guid", how="left", coalesce=True)
    kept = both["artifact_guid"].is_in(after["artifact_guid"].implode())
    changed = both.filter(~kept | pl.col("label").ne_missing(pl.col("becomes")))
    changes = (
        changed.group_by("label", "becomes")
        .len("artifacts")
        .sort("artifacts", "label", "becomes", descending=[True, False, False])
    )
    findings.funnel |= {
        "use case: rows in": rows.height,
        "use case: rows out": labelled.height,
        "use case: artifacts relabelled": changed.height - int((~kept).sum()),
        "use case: artifacts dropped": int((~kept).sum()),
    }
    findings.relabelled = findings_table("relabelled", changes.cast(pl.String).head(MAX_ROWS).iter_rows(named=True))
    if use_case.name == MAPPED:
        unknown = rows.filter(~pl.col("label").cast(pl.String).is_in(list(use_case.label_map)))
        counts = (
            unknown.group_by(pl.col("label").cast(pl.String))
            .len("rows")
            .sort("rows", "label", descending=[True, False])
        )
        findings.funnel["use case: labels not in labels.csv"] = counts.height
        findings.not_mapped = findings_table("not_mapped", counts.cast(pl.String).iter_rows(named=True))
