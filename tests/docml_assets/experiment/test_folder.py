from pathlib import Path

import pytest

from docml_assets.errors import ExperimentError
from docml_assets.experiment.folder import ExperimentFolder, dockerfile_problems
from docml_contract.base import BadName
from tests.docml_assets.experiment.experiments import FUNCTIONS, SETTINGS, write_experiment


def test_load(tmp_path: Path) -> None:
    folder = ExperimentFolder.load(write_experiment(tmp_path))
    assert (folder.name, folder.settings_text, folder.functions_source) == ("EXP-1", SETTINGS, FUNCTIONS)
    assert folder.settings.model_names == ("small",)


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="docml new EXP-2"):
        ExperimentFolder.load(tmp_path / "EXP-2")
    write_experiment(tmp_path, "EXP-20-letters")
    for slip in ("EXP-20", "exp-20-letter"):
        with pytest.raises(ExperimentError, match="did you mean EXP-20-letters"):
            ExperimentFolder.load(tmp_path / slip)
    with pytest.raises(BadName):
        ExperimentFolder.load(write_experiment(tmp_path, "a|b"))
    with pytest.raises(ExperimentError, match="user_defined_funcs"):
        ExperimentFolder.load(write_experiment(tmp_path, functions=None))
    (write_experiment(tmp_path) / "settings.ini").write_bytes(b"\xff\xfe")
    with pytest.raises(ExperimentError, match="not UTF-8 at byte 0"):
        ExperimentFolder.load(tmp_path / "EXP-1")


def test_byte_order_marks_and_windows_line_ends_are_accepted_in_every_file(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path)
    for name, text in (("settings.ini", SETTINGS), ("user_defined_funcs.py", FUNCTIONS)):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    found = ExperimentFolder.load(folder)
    assert found.functions_source == FUNCTIONS
    assert found.settings == ExperimentFolder.load(write_experiment(tmp_path / "plain")).settings


def test_the_dockerfile_is_read_too(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path)
    assert dockerfile_problems(folder) == []
    text = '# above\r\nARG DOCML_BASE\r\nFROM ${DOCML_BASE} # the base\r\nRUN pip install x # fine\r\nENV A="b # c"\r\n'
    (folder / "sagemaker.Dockerfile").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (problem,) = dockerfile_problems(folder)
    assert problem.line == 3
    assert "a comment after the instruction" in problem.found
    (folder / "sagemaker.Dockerfile").write_bytes(b"\xff")
    (problem,) = dockerfile_problems(folder)
    assert "not UTF-8" in problem.found
