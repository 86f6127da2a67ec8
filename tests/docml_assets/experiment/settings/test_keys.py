import re
from pathlib import Path

from docml_assets.experiment.settings.key_reader import extra_of, operational_keys
from docml_assets.experiment.settings.keys import Keys

REQUIRED = {
    "model_names": "small",
    "labels_query": "SELECT 1",
    "files_from_prod": "a.json, b.json",
    "model_input_files": "a.json",
}


def test_documented_defaults() -> None:
    keys = Keys.model_validate(REQUIRED)
    assert (keys.run_reconciliation, keys.run_preparation, keys.run_training, keys.run_tuning, keys.run_inference) == (
        True,
        True,
        True,
        False,
        True,
    )
    assert keys.run_num == 1
    assert keys.files_on_research == keys.files_from_prod
    assert keys.reconciliation_processes is None
    assert (keys.cpu_processes, keys.encoded_data_dir, keys.near_duplicate_threshold) == (1, "full_dataset", 0.9)
    assert (keys.split, keys.split_seed, keys.split_by) == ((0.8, 0.1, 0.1), 13, None)
    assert (keys.objective_metric_name, keys.objective_type, keys.max_jobs, keys.max_parallel_jobs) == (
        "valid_f1",
        "Maximize",
        10,
        1,
    )
    assert (keys.worse_than_previous, keys.wandb_mode, keys.wandb_project) == ("warn", "disabled", "docml")


def test_spot_waits_twice_the_run_time_by_default() -> None:
    keys = Keys.model_validate({**REQUIRED, "training_use_spot": "true", "training_max_runtime_seconds": "3600"})
    assert keys.training_max_wait_seconds == 7200
    assert Keys.model_validate(REQUIRED).training_max_wait_seconds is None


def test_every_key_has_a_meaning_and_an_example_that_is_right() -> None:
    for name, field in Keys.model_fields.items():
        extra = extra_of(name)
        assert field.description
        Keys.model_validate({**REQUIRED, name: extra["example"]})


def test_what_freezes() -> None:
    operational = operational_keys()
    assert {
        "run_num",
        "run_tuning",
        "training_instance_type",
        "cpu_processes",
        "max_cost_usd",
        "wandb_mode",
    } <= operational
    assert not {"model_names", "labels_query", "split", "use_distributed", "docker_image", "max_jobs"} & operational


def test_attribute_names_are_the_keys_in_lower_case() -> None:
    assert all(re.fullmatch(r"[a-z_0-9]+", name) for name in Keys.model_fields)
    assert len((Path(__file__).parents[4] / "docs" / "settings.md").read_text().splitlines()) > len(Keys.model_fields)
