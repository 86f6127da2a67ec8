"""A store with two finished runs."""

from pathlib import Path

from docml_contract.names import PREDICTIONS, REPORT_HTML, REPORT_JSON, RunPlace
from resources.store import Store
from resources.store.manifests import publish_bytes
from tests.docml_assets.report.samples import predictions_table, report


def store_with_two_runs(folder: Path) -> Store:
    """EXP-a 1 with two models, EXP-b 3 with a worse one."""
    store = Store.open(str(folder), environment={})
    finish(store, RunPlace("EXP-a", 1), ("tiny", "large"), (0.9, 0.5))
    finish(store, RunPlace("EXP-b", 3), ("tiny",), (0.4,))
    return store


def finish(store: Store, place: RunPlace, models: tuple[str, ...], accuracy: tuple[float, ...]) -> None:
    files = report(predictions_table(200, models, accuracy=accuracy), experiment=place.experiment, run=place.number)
    publish_bytes(
        store,
        place.inference,
        {REPORT_JSON: files.report_json, REPORT_HTML: files.html, PREDICTIONS: files.predictions_parquet},
        asset="inference_report",
        experiment=place.experiment,
        run=place.number,
        cache_key="0" * 64,
        data_version=files.data_version,
        inputs={},
        code_version="1",
    )
