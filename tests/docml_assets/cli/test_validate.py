import os
import subprocess
import sys
from pathlib import Path

from docml_assets.experiment.scaffold import new_experiment

ROOT = Path(__file__).parents[3]

SETTINGS = """\
[settings]
MODEL_NAMES = a_b
RUN_TRAINING = treu
RUN_NUM = 0
LABEL_QUERY = SELECT artifact_guid, label, file_hash FROM t
FILES_FROM_PROD = raw_text.json, ../x
MODEL_INPUT_FILES = words.json
SPLIT = 0.8, 0.1, 0.2
TRAINING_INSTANCE_TYPE = g5.xlarge
[hyperparameters]
epoch = 3
learning_rate = fast
db = postgresql://u:geheim42@h/x
[tunable]
weight_decay = 1 -> 0
"""
FUNCTIONS = """\
PADDING = {"a": PAD}
def encode_data(context): ...
def load_model(model_name, context):
    pass
"""


def validate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("DOCML_", "FORCE_COLOR", "NO_COLOR"))
    }
    command = [sys.executable, "-c", "from docml_assets.cli import main; main()", "validate", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, "PYTHONPATH": f"{ROOT}:{ROOT / 'trainer_image'}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_a_dozen_mistakes_at_once_without_colours_or_traces(tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "EXP-9"
    folder.mkdir(parents=True)
    (folder / "settings.ini").write_text(SETTINGS)
    (folder / "user_defined_funcs.py").write_text(FUNCTIONS)
    before = tree(tmp_path)
    result = validate(tmp_path, "EXP-9")
    assert result.returncode == 1
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    assert "geheim42" not in result.stdout
    for line in (2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 15):
        assert f"experiments/EXP-9/settings.ini:{line}\n" in result.stdout
    for line in (1, 2, 3):
        assert f"experiments/EXP-9/user_defined_funcs.py:{line}\n" in result.stdout
    assert (
        result.stdout.count("  found     ")
        == result.stdout.count("  expected  ")
        == result.stdout.count("  remedy    ")
    )
    assert result.stdout.endswith(f"EXP-9: {result.stdout.count('  found     ')} problems\n")
    assert tree(tmp_path) == before


def test_a_right_experiment_by_name_and_by_path(tmp_path: Path) -> None:
    new_experiment(tmp_path / "experiments" / "EXP-1", None)
    before = tree(tmp_path)
    for argument in ("EXP-1", "experiments/EXP-1", "experiments/EXP-1/"):
        result = validate(tmp_path, argument)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.splitlines() == [
            "EXP-1: nothing wrong",
            "run 1: reconciliation, preparation, training, inference",
            "models: averaged-words",
        ]
    assert tree(tmp_path) == before


def test_what_does_not_exist(tmp_path: Path) -> None:
    result = validate(tmp_path, "EXP-9")
    assert result.returncode == 1
    assert "docml new EXP-9" in result.stdout
    assert validate(tmp_path, "a|b").returncode == 1
    assert validate(tmp_path).returncode == 2


def test_neither_dagster_nor_the_trainer_is_loaded(tmp_path: Path) -> None:
    new_experiment(tmp_path / "experiments" / "EXP-1", None)
    code = (
        "import sys; from docml_assets.cli import cli; cli.main(['validate', 'EXP-1'], standalone_mode=False); "
        "print([name for name in ('dagster', 'torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'trainer_image'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "[]"
