"""A use case at work on the label rows: in a worker process, checked, and counted."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pyarrow as pa

from docml_assets.experiment.use_case import MAPPED, UseCase
from docml_assets.reconcile.findings import MAX_ROWS, ReconciliationError, ReconciliationFindings, findings_table
from docml_assets.reconcile.labels import named_columns
from docml_assets.reconcile.process import scratch_folder
from docml_assets.tables import parquet_bytes
from docml_contract.base import ProcessFuncBroken
from docml_contract.sandbox import TIMEOUT_SECONDS, Worker
from resources.label_values import TEXT_COLUMNS

ROWS, LABELLED = "rows.parquet", "labelled.parquet"
ROOM_BYTES = 256_000_000  # that `labels` may print, or write beyond twice the rows it got
DRIVER = f"""

def docml_labels(artifact, directory):
    import resource
    import pandas

    resource.setrlimit(resource.RLIMIT_FSIZE, (artifact["room"], artifact["room"]))
    rows = labels(pandas.read_parquet(directory / {ROWS!r}))
    if not isinstance(rows, pandas.DataFrame):
        raise TypeError(f"it returned {{type(rows).__name__}}; expected a pandas DataFrame, the rows that stay")
    rows.to_parquet(directory / {LABELLED!r}, index=False)
"""


def apply_use_case(
    use_case: UseCase,
    environment: Mapping[str, str],
    table: pa.Table,
    findings: ReconciliationFindings,
    timeout: float = TIMEOUT_SECONDS,
) -> pa.Table:
    """The rows of LABELS_QUERY as the use case wants them; what it changed is counted. ReconciliationError says what is wrong with it."""
    table = named_columns(table)
    rows = pl.DataFrame(pl.from_arrow(table))
    labelled = (
        _mapped(use_case, rows) if use_case.name == MAPPED else _by_function(use_case, table, environment, timeout)
    )
    _count(rows, labelled, findings, use_case)
    return labelled.to_arrow()


def _mapped(use_case: UseCase, rows: pl.DataFrame) -> pl.DataFrame:
    label = pl.col("label").cast(pl.String)
    dropped = [old for old, new in use_case.label_map.items() if not new]
    kept = rows.filter(~label.is_in(dropped).fill_null(False))
    return kept.with_columns(label.replace(use_case.label_map)) if use_case.label_map else kept


def _by_function(use_case: UseCase, table: pa.Table, environment: Mapping[str, str], timeout: float) -> pl.DataFrame:
    what = f"labels of the use case {use_case.name}"
    with scratch_folder() as scratch:
        directory = scratch / "labels"
        directory.mkdir()
        (directory / ROWS).write_bytes(parquet_bytes(table))
        room = ROOM_BYTES + 2 * (directory / ROWS).stat().st_size
        worker = Worker(
            scratch / "worker",
            use_case.text + DRIVER,
            environment,
            timeout,
            module=use_case.file,
            function="docml_labels",
        )
        try:
            outcome = worker.run({"room": room}, directory)
        except ProcessFuncBroken as error:
            raise ReconciliationError(f"{what}: {error}") from error
        finally:
            worker.close()
        if outcome.error is not None:
            reason = outcome.error.replace("docml_labels", "labels")
            if "[Errno 27]" in reason:
                reason = f"it printed or wrote more than {room / 1e6:,.0f} MB; expected rows"
            raise ReconciliationError(f"{what}: {reason}\n{outcome.traceback}".rstrip())
        return _checked(what, table, directory / LABELLED)


def _checked(what: str, given: pa.Table, path: Path) -> pl.DataFrame:
    """What `labels` returned: the same artifacts or fewer, each as often as it came, with the columns that are needed."""
    if path.is_symlink() or not path.is_file():
        raise ReconciliationError(f"{what} removed the rows that it returned")
    try:
        rows = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ReconciliationError(f"{what} left rows that cannot be read: {str(error).splitlines()[0]}") from error
    missing = [name for name in TEXT_COLUMNS if name not in rows.columns]
    if missing:
        raise ReconciliationError(
            f"{what} returned the columns {', '.join(rows.columns)}; expected {', '.join(missing)} too: return the rows that it got"
        )
    if "unit" in rows.columns and "unit" not in given.column_names:
        raise ReconciliationError(f"{what} returned a column unit; expected one row an artifact: drop the column")
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
        if returned > came:
            raise ReconciliationError(f"{what} returned {returned} rows for {guid!r}, of which it got {came}")
    return rows


def _count(rows: pl.DataFrame, labelled: pl.DataFrame, findings: ReconciliationFindings, use_case: UseCase) -> None:
    """Rows before and after, and every change of a label, the most frequent first."""
    key = ["artifact_guid", "label"]
    before, after = (
        frame.select(pl.col(key).cast(pl.String)).unique("artifact_guid", keep="first", maintain_order=True)
        for frame in (rows, labelled)
    )
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
