"""docml predict and serve: a model of a finished run classifies documents without labels, in one job or over HTTP."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from docml_assets.cli.arguments import Choice, RunChoice, complete_experiment, complete_run
from docml_assets.cli.finished_run import find_run, open_run
from docml_assets.cli.home import COPIES, prepare_dagster_home
from docml_assets.errors import DocmlError
from docml_assets.numbers import number
from docml_assets.terminal import TableColumn, console, print_table, say

if TYPE_CHECKING:
    from docml_assets.steps.documents import DocumentSet
    from docml_assets.steps.prediction import PredictionResult
    from docml_assets.steps.work import Work

SUFFIXES = (".parquet", ".csv", ".json")
SHOWN_ERRORS = 5


def _check_out(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix not in SUFFIXES:
        raise click.BadParameter(f"{value}: expected a name that ends in {', '.join(SUFFIXES)}")
    return value


@click.command(name="predict")
@click.argument("experiment", shell_complete=complete_experiment)
@click.argument("run", type=RunChoice(), shell_complete=complete_run)
@click.option("--model", help="The model, where the run compares several.")
@click.option("--files", help="A folder or s3://bucket/prefix: <guid>/<file>, or one file per document.")
@click.option("--query", help="A SELECT that yields the artifact_guid of documents in production.")
@click.option("--out", type=click.Path(path_type=Path), callback=_check_out, help="Write the table here as well.")
@click.option("--verbose", "-v", is_flag=True, help="Show the job's own log lines as well.")
def predict(
    experiment: str,
    run: Choice,
    model: str | None,
    files: str | None,
    query: str | None,
    out: Path | None,
    verbose: bool,
) -> int:
    """Classify documents with run RUN (a number, or `champion`) of EXPERIMENT: one job, one table.

    Documents that cannot be read are rows with an error; where they are more than MAX_FAILED_SHARE allows, the exit code is 1.
    Asking for the same documents again launches no job.
    """
    if (files is None) == (query is None):
        raise click.UsageError("expected --files or --query: where the documents are")
    from docml_assets.deployment import Deployment
    from docml_assets.display import make_display
    from docml_assets.steps.deployment import choose_model
    from docml_assets.steps.prediction import predict_documents

    prepare_dagster_home()
    with make_display(verbose=verbose) as display:
        deployment = Deployment.current()
        number, model = find_run(deployment, experiment, run, model)
        work = open_run(deployment, experiment, number, display, "prediction")
        chosen = choose_model(work, model)
        documents = _documents(work, files, query)
        for note in documents.notes:
            work.reporter.say(note)
        result = predict_documents(work, chosen, documents)
    if out is not None:
        write_table(result, out)
    return _conclude(work, chosen, result, out)


def _documents(work: "Work", files: str | None, query: str | None) -> "DocumentSet":
    from docml_assets.steps.documents import documents_in, documents_of
    from resources.store import Store

    if query is not None:
        return documents_of(work, query)
    assert files is not None
    return documents_in(work, Store.open(files, environment=work.environment))


LABEL_COLUMNS = (
    TableColumn("label", shortened=True),
    TableColumn("documents", right=True),
    TableColumn("mean probability", right=True),
)


def _conclude(work: "Work", model: str, result: "PredictionResult", out: Path | None) -> int:
    """Show what came of it; the exit code."""
    import pyarrow.compute as pc
    from rich.text import Text

    from docml_contract.names import PREDICTIONS

    frame = result.table.select(["artifact_guid", "prediction", "probability", "error"]).to_pandas()
    rows = [
        (str(label), f"{len(found):,}", number(found["probability"].mean()))
        for label, found in frame.dropna(subset=["prediction"]).groupby("prediction")
    ]
    terminal = console()
    before = f", {result.known:,} of them classified before" if result.known else ""
    how = "" if result.jobs else "; no job was launched"
    terminal.print(Text(f"{len(frame):,} documents, by {model} of {work.describe()}{before}{how}"), soft_wrap=True)
    print_table(LABEL_COLUMNS, rows)
    accepted = pc.sum(result.table["accepted"]).as_py()
    if accepted is not None:
        terminal.print(Text(f"the run's decision policy accepts {accepted:,} without a person"))
    failed = frame.dropna(subset=["error"])
    for row in failed.head(SHOWN_ERRORS).itertuples():
        terminal.print(Text(f"no answer for {row.artifact_guid}: {row.error}"), soft_wrap=True)
    if len(failed) > SHOWN_ERRORS:
        terminal.print(Text(f"… and for {len(failed) - SHOWN_ERRORS:,} more: see the column error of the table"))
    for path in (work.store.uri(f"{result.folder}/{PREDICTIONS}"), *([str(out)] if out else [])):
        terminal.print(Text(f"Predictions: {path}"), soft_wrap=True)
    allowed = work.settings.max_failed_share
    if len(failed) > allowed * len(frame):
        say(
            f"docml: {len(failed):,} of {len(frame):,} documents have no answer, more than MAX_FAILED_SHARE = {allowed:g} allows; "
            "fix them and predict again, or use the table as it is",
            fg="red",
            err=True,
        )
        return 1
    return 0


def write_table(result: "PredictionResult", path: Path) -> None:
    """The table as parquet, CSV or JSON, by the path's suffix. CSV and JSON name the label of every probability. DocmlError."""
    try:
        _write(result, path)
    except OSError as error:
        raise DocmlError(
            f"{path} cannot be written ({error.strerror or error}); the table is kept in {result.folder} of the store: predict again "
            "with another --out, which launches no job"
        ) from error


def _write(result: "PredictionResult", path: Path) -> None:
    from docml_assets.tables import csv_cell, parquet_bytes

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        path.write_bytes(parquet_bytes(result.table))
        return
    rows = [_named(row, result.labels) for row in result.table.to_pylist()]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    import pandas as pd

    for row in rows:
        row["probabilities"] = json.dumps(row["probabilities"], ensure_ascii=False) if row["probabilities"] else None
    cells = [{name: csv_cell(value) for name, value in row.items()} for row in rows]
    pd.DataFrame(cells, columns=result.table.column_names).to_csv(path, index=False)


def _named(row: dict[str, Any], labels: tuple[str, ...]) -> dict[str, Any]:
    values = row["probabilities"]
    return {**row, "probabilities": None if values is None else dict(zip(labels, values, strict=True))}


@click.command(name="serve")
@click.argument("experiment", shell_complete=complete_experiment)
@click.argument("run", type=RunChoice(), shell_complete=complete_run)
@click.option("--model", help="The model, where the run compares several.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65_535), help="The port to listen on.")
def serve(experiment: str, run: Choice, model: str | None, host: str, port: int) -> None:
    """Answer over HTTP with a model of run RUN (a number, or `champion`) of EXPERIMENT, as a SageMaker inference container does. Ctrl-C ends it.

    POST /invocations takes documents, GET /ping tells whether the model is loaded, GET /openapi.json describes both.
    """
    from docml_assets.deployment import Deployment
    from docml_assets.display import make_display
    from docml_assets.steps.deployment import choose_model, manifest_sha256, read_deployment
    from resources.endpoints.copies import HeldCopies
    from resources.endpoints.local import server_environment

    home = prepare_dagster_home()
    with make_display(verbose=False) as display:
        deployment = Deployment.current()
        number, model = find_run(deployment, experiment, run, model)
        work = open_run(deployment, experiment, number, display, "serve")
        chosen = choose_model(work, model)
        read_deployment(work, chosen)
        sha256 = manifest_sha256(work, chosen)
        folder = HeldCopies(home / COPIES).take(work.store, work.place.deployment(chosen), sha256)
    say(f"{work.describe()}, {chosen}: http://{host}:{port}/invocations (Ctrl-C ends it)")
    sys.stdout.flush()
    python = work.environment.get("DOCML_WORKER_PYTHON") or sys.executable
    environment = server_environment(work.environment, home / "serve") | {
        "DOCML_MODEL_FOLDER": str(folder),
        "DOCML_MANIFEST_SHA256": sha256,
        "DOCML_SERVE_HOST": host,
        "SAGEMAKER_BIND_TO_PORT": str(port),
    }
    os.execvpe(python, [python, "-m", "docml_trainer", "serve"], environment)  # signals go to the server itself
