"""Experiment folders for tests."""

from pathlib import Path

SETTINGS = """\
[settings]
MODEL_NAMES = small
LABELS_QUERY = SELECT artifact_guid, label, sha256 AS file_hash FROM document_labels
FILES_FROM_PROD = raw_text.json
MODEL_INPUT_FILES = raw_text.json
"""

FUNCTIONS = """\
import json

WIDTH = 4


def get_dataset_features(context):
    return {"words": WIDTH}


def encode_data(instance, context):
    return {"words": json.loads(instance["raw_text.json"].read_text())}


def load_model(model_name, context):
    return model_name


def ordered_input_keys(model_name, context):
    return ["words"]
"""
# Machines of every step, one of a type that no price list has.
MACHINES = """
PREPARATION_INSTANCE_TYPE = ml.m5.xlarge
PREPARATION_INSTANCE_COUNT = 3
PREPARATION_MAX_RUNTIME_SECONDS = 1800
TRAINING_INSTANCE_TYPE = ml.g5.xlarge
TRAINING_MAX_RUNTIME_SECONDS = 3600
TRAINING_KEEP_ALIVE_SECONDS = 1800
INFERENCE_INSTANCE_TYPE = ml.unheard.of
"""


def settings_text(settings: str = "", hyperparameters: str = "", tunable: str = "") -> str:
    """A right settings.ini with further lines in its sections; a key of `settings` replaces the one that is there."""
    keys = {line.partition("=")[0].strip() for line in settings.splitlines()}
    lines = [line for line in SETTINGS.splitlines() if line.partition("=")[0].strip() not in keys]
    return "\n".join([*lines, settings, "[hyperparameters]", hyperparameters, "[tunable]", tunable]) + "\n"


def write_experiment(
    root: Path, name: str = "EXP-1", settings: str = SETTINGS, functions: str | None = FUNCTIONS
) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.ini").write_text(settings, encoding="utf-8")
    if functions is not None:
        (folder / "user_defined_funcs.py").write_text(functions, encoding="utf-8")
    return folder
