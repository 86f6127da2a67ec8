"""Finished reports in the store."""

from docml_assets.report.errors import ReportError
from docml_assets.report.past import PreviousRun
from docml_assets.report.schema import Report
from docml_assets.tables import read_parquet
from docml_contract.names import PREDICTIONS, REPORT_JSON, RunPlace
from resources.store.manifests import read_manifest
from resources.store.store import Store


def read_report(store: Store, place: RunPlace) -> Report:
    """report.json of a run. ReportError if the run has no finished report."""
    if read_manifest(store, place.inference) is None:
        raise ReportError(
            f"{place.experiment} run {place.number} has no finished inference report ({store.uri(place.inference)}): "
            f"finish it with docml run {place.experiment} --run {place.number}; docml runs {place.experiment} shows how far it is"
        )
    key = f"{place.inference}/{REPORT_JSON}"
    return Report.from_bytes(store.get(key), store.uri(key))


def read_run(store: Store, place: RunPlace) -> PreviousRun:
    """What a run's models said. ReportError if the run has no finished report."""
    report = read_report(store, place)
    predictions = read_parquet(store.get(f"{place.inference}/{PREDICTIONS}"))
    return PreviousRun(place.experiment, place.number, predictions, report.labels)
