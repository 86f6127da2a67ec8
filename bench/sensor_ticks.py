"""Sensor ticks at 200 experiments with 50 runs each, all of them claimed and reconciled, on a folder store.

`python -m bench sensor_ticks`. The target is absolute, 5 s a tick; there is no peer. The first ticks after switching a sensor on look at
everything and end when their time is up (4 s); the figures are the longest tick and the ordinary one, in which nothing is new.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import dagster as dg

from docml_assets.deployment import Deployment
from docml_assets.sensors.experiments import experiment_sensor
from docml_assets.sensors.new_data import new_data_sensor

EXPERIMENTS, RUNS, TICKS = 200, 50, 12

SETTINGS = """\
[settings]
RUN_NUM = {run}
MODEL_NAMES = small
LABELS_QUERY = SELECT artifact_guid, label, sha256 AS file_hash FROM document_labels
FILES_FROM_PROD = raw_text.json
MODEL_INPUT_FILES = raw_text.json
RERUN_ON_NEW_DATA = true
"""
FUNCTIONS = """\
def get_dataset_features(context):
    return {}


def encode_data(instance, context):
    return {}


def load_model(model_name, context):
    return model_name


def ordered_input_keys(model_name, context):
    return []
"""


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, dg.instance_for_test() as instance:
        root = Path(folder)
        environment = {"DOCML_STORE": str(root / "store"), "DOCML_EXPERIMENTS": str(root / "experiments")}
        _populate(root, Deployment(environment))
        rows = []
        for name, sensor in (("experiment_sensor", experiment_sensor), ("new_data_sensor", new_data_sensor)):
            seconds, cursor = [], None
            for _ in range(TICKS):
                context = dg.build_sensor_context(
                    instance=instance, cursor=cursor, resources={"deployment": Deployment(environment)}
                )
                start = time.perf_counter()
                result = sensor(context)
                seconds.append(time.perf_counter() - start)
                assert isinstance(result, dg.SensorResult)
                assert not result.run_requests, "nothing is new, and something started"
                cursor = result.cursor
            rows += [
                _row(f"{name}, longest of {TICKS} ticks at {EXPERIMENTS} x {RUNS} (target 5)", max(seconds)),
                _row(f"{name}, tick without news at {EXPERIMENTS} x {RUNS} (target 5)", min(seconds[-3:])),
            ]
        return rows


def _row(metric: str, seconds: float) -> dict[str, Any]:
    return {
        "bench": "sensor_ticks",
        "metric": metric,
        "unit": "s",
        "ours": round(seconds, 3),
        "peers": {},
        "ratio": None,
    }


def _populate(root: Path, deployment: Deployment) -> None:
    """Experiment folders, and claims and reconciliation manifests of all their runs."""
    from docml_assets.experiment.settings.settings import parse_settings
    from docml_assets.steps.reconciliation import versions

    made_of = versions(parse_settings(SETTINGS.format(run=1), "settings.ini"), deployment.labels, deployment.production)
    for index in range(EXPERIMENTS):
        name = f"EXP-{index}"
        experiment = root / "experiments" / name
        experiment.mkdir(parents=True)
        (experiment / "settings.ini").write_text(SETTINGS.format(run=RUNS))
        (experiment / "user_defined_funcs.py").write_text(FUNCTIONS)
        for run in range(1, RUNS + 1):
            claim = {
                "experiment": name,
                "run": run,
                "settings_text": SETTINGS.format(run=run),
                "functions_source": FUNCTIONS,
                "trigger": {},
                "request_id": "bench",
                "created_at": "2026-01-01T00:00:00+00:00",
            }
            manifest = {
                "asset": "reconciled_data",
                "experiment": name,
                "run": run,
                "created_at": "2026-01-01T00:00:00+00:00",
                "cache_key": "",
                "data_version": "",
                "inputs": made_of,
                "code_version": "1",
                "files": [],
            }
            place = root / "store" / name / f"run_{run}"
            for path, content in (("experiment/CLAIM.json", claim), ("reconciliation/MANIFEST.json", manifest)):
                (place / path).parent.mkdir(parents=True)
                (place / path).write_text(json.dumps(content))
