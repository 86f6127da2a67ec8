import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from docml_assets.errors import ExperimentError
from docml_assets.experiment.scaffold import model_name_for, new_experiment
from docml_assets.experiment.settings.settings import parse_settings
from docml_assets.runs.preflight import validate
from docml_contract.base import BadName

ROOT = Path(__file__).parents[3]


def constant(path: Path, name: str) -> object:
    (value,) = [
        node.value
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    ]
    return ast.literal_eval(value)


@pytest.mark.parametrize("model", [None, "distilbert-base-uncased", "FacebookAI/xlm-roberta_base"])
def test_a_new_folder_validates_and_is_well_formed(tmp_path: Path, model: str | None) -> None:
    settings, functions = new_experiment(tmp_path / "EXP-1", model)
    assert validate(tmp_path / "EXP-1", {"DOCML_STORE": str(tmp_path / "store")}) == []
    ruff = [sys.executable, "-m", "ruff", "--config", str(ROOT / "pyproject.toml")]
    for arguments in (["check", str(functions)], ["format", "--check", str(functions)]):
        checked = subprocess.run([*ruff[:3], arguments[0], *ruff[3:], *arguments[1:]], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout
    assert "@" not in settings.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["EXP-1"]


def test_a_hub_model(tmp_path: Path) -> None:
    settings, functions = new_experiment(tmp_path / "EXP-1", "FacebookAI/xlm-roberta_base")
    assert constant(functions, "PRETRAINED") == {"xlm-roberta-base": "FacebookAI/xlm-roberta_base"}
    assert constant(functions, "PADDING") == {"input_ids": 1}
    parsed = parse_settings(settings.read_text(), settings)
    assert parsed.model_names == ("xlm-roberta-base",)
    assert parsed.own_hyperparameters == {"max_length": 512}


def test_a_model_in_a_folder_is_asked_for_its_padding_and_length(tmp_path: Path) -> None:
    model = tmp_path / 'my "model"'
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"pad_token_id": 5, "max_position_embeddings": 128}))
    settings, functions = new_experiment(tmp_path / "EXP-1", str(model))
    assert constant(functions, "PRETRAINED") == {"my-model": str(model)}
    assert constant(functions, "PADDING") == {"input_ids": 5}
    assert parse_settings(settings.read_text(), settings).own_hyperparameters == {"max_length": 128}
    (model / "config.json").write_text("{")
    with pytest.raises(ExperimentError, match=r"config\.json"):
        new_experiment(tmp_path / "EXP-2", str(model))


def test_what_exists_stays(tmp_path: Path) -> None:
    settings, _ = new_experiment(tmp_path / "EXP-1", None)
    settings.write_text("mine")
    with pytest.raises(ExperimentError, match="exists already"):
        new_experiment(tmp_path / "EXP-1", None)
    assert settings.read_text() == "mine"
    with pytest.raises(BadName):
        new_experiment(tmp_path / "a b", None)


@pytest.mark.parametrize(
    ("model", "name"),
    [("google/bert_uncased_L-2", "bert-uncased-L-2"), ("/models/my model/", "my-model"), ("x" * 80, "x" * 63)],
)
def test_model_names(model: str, name: str) -> None:
    assert model_name_for(model) == name


def test_a_model_without_a_name() -> None:
    with pytest.raises(BadName):
        model_name_for("/")
