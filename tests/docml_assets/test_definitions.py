"""The code location: complete, light, and silent."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg

from docml_assets.definitions import defs
from docml_assets.execution import ASSETS, selection

REPOSITORY = Path(__file__).parents[2]


def test_the_assets_of_a_run_those_that_are_used_and_the_external_ones() -> None:
    graph = defs.resolve_asset_graph()
    keys = {key.to_user_string() for key in graph.materializable_asset_keys}
    assert keys == {*(asset for asset, _ in ASSETS), "deployed_endpoint", "classified_documents"}
    nodes = {node.name for node in defs.resolve_job_def("run_experiment").nodes}
    assert not {name for name in nodes if name.startswith("classified_documents")}
    assert {key.to_user_string() for key in graph.external_asset_keys} == {
        *("production_labels", "production_files", "production")
    }
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.owners, key
        assert node.group_name, key


def test_sensors_that_cost_money_are_off_until_switched_on() -> None:
    running = {sensor.name: sensor.default_status for sensor in defs.sensors or []}
    assert running == {
        "experiment_sensor": dg.DefaultSensorStatus.STOPPED,
        "new_data_sensor": dg.DefaultSensorStatus.STOPPED,
        "orphaned_endpoints_sensor": dg.DefaultSensorStatus.RUNNING,
        "new_documents_sensor": dg.DefaultSensorStatus.STOPPED,
        "orphaned_jobs_sensor": dg.DefaultSensorStatus.RUNNING,
        "run_failure_sensor": dg.DefaultSensorStatus.RUNNING,
    }


def test_loading_needs_no_environment_and_brings_no_heavy_library() -> None:
    code = (
        "import sys, docml_assets.definitions; "
        "heavy = ['torch', 'transformers', 'datasets', 'boto3', 'sagemaker', 'pandas', 'scipy', 'matplotlib', 'obstore']; "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'trainer_image'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_dagster_finds_nothing_wrong(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        cwd=REPOSITORY,
        env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Validation successful" in done.stdout + done.stderr


def test_an_execution_selects_up_to_the_last_of_its_steps() -> None:
    assert selection(frozenset({"preparation"}), whole=False)[-1] == "encoded_splits"
    assert len(selection(frozenset({"reconciliation"}), whole=True)) == len(ASSETS)
