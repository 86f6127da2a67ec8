from pathlib import Path

import pytest

from docml_assets.errors import ExperimentError
from docml_assets.experiment.folder import ExperimentFolder
from docml_contract.errors import BadName
from tests.docml_assets.experiment.experiments import FUNCTIONS, SETTINGS, write_experiment


def test_load(tmp_path: Path) -> None:
    folder = ExperimentFolder.load(write_experiment(tmp_path))
    assert (folder.name, folder.settings_text, folder.functions_source) == ("EXP-1", SETTINGS, FUNCTIONS)
    assert folder.settings.model_names == ("small",)


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="docml new EXP-2"):
        ExperimentFolder.load(tmp_path / "EXP-2")
    with pytest.raises(BadName):
        ExperimentFolder.load(write_experiment(tmp_path, "a|b"))
    with pytest.raises(ExperimentError, match="user_defined_funcs"):
        ExperimentFolder.load(write_experiment(tmp_path, functions=None))
    (write_experiment(tmp_path) / "settings.ini").write_bytes(b"\xff\xfe")
    with pytest.raises(ExperimentError, match="not UTF-8 at byte 0"):
        ExperimentFolder.load(tmp_path / "EXP-1")
