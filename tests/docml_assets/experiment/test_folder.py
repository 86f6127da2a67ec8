from pathlib import Path

import pytest

from docml_assets.errors import ExperimentError
from docml_assets.experiment.folder import ExperimentFolder, validate
from docml_contract.errors import BadName
from tests.docml_assets.experiment.experiments import FUNCTIONS, SETTINGS, settings_text, write_experiment


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"DOCML_STORE": str(tmp_path / "store"), **more}


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


def test_a_right_folder_has_no_problems_and_nothing_is_written(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "experiments")
    assert validate(folder, environment(tmp_path)) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "EXP-1",
        "experiments",
        "settings.ini",
        "user_defined_funcs.py",
    ]


def test_mistakes_of_both_files_and_of_the_environment_come_together(tmp_path: Path) -> None:
    folder = write_experiment(
        tmp_path,
        settings=settings_text("SPLIT = 1, 2\nRUN_NUM = x"),
        functions=FUNCTIONS.replace("return model_name", "pass"),
    )
    files = [problem.place for problem in validate(folder, environment(tmp_path))]
    assert files == [f"{folder}/settings.ini:6", f"{folder}/settings.ini:7", f"{folder}/user_defined_funcs.py:14"]
    right = write_experiment(tmp_path)
    assert [problem.place for problem in validate(right, environment(tmp_path, DOCML_ENV="cloud"))] == [
        "the environment"
    ]


def test_a_missing_file_does_not_hide_the_mistakes_of_the_other(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, settings=settings_text("SPLIT = 1, 2"), functions=None)
    places = [problem.place for problem in validate(folder, environment(tmp_path))]
    assert places == [f"{folder}/settings.ini:6", f"{folder}/user_defined_funcs.py"]
    folder = write_experiment(tmp_path, "EXP-2", functions="def (")
    (folder / "settings.ini").unlink()
    places = [problem.place for problem in validate(folder, environment(tmp_path))]
    assert places == [f"{folder}/settings.ini", f"{folder}/user_defined_funcs.py:1"]


def test_no_folder_and_a_bad_name(tmp_path: Path) -> None:
    (problem,) = validate(tmp_path / "EXP-9", environment(tmp_path))
    assert problem.remedy == "create it with: docml new EXP-9"
    (problem,) = validate(write_experiment(tmp_path, "EXP 9"), environment(tmp_path))
    assert problem.remedy == "rename the folder"


def test_files_that_nothing_makes(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, settings=settings_text("FILES_ON_RESEARCH = raw_text.json, words.json"))
    (problem,) = validate(folder, environment(tmp_path))
    assert problem.found == "no process_func, though FILES_ON_RESEARCH names words.json"
    made = f"{FUNCTIONS}\n\ndef process_func(artifact, directory):\n    (directory / 'words.json').touch()\n"
    write_experiment(tmp_path, settings=settings_text("FILES_ON_RESEARCH = raw_text.json, words.json"), functions=made)
    assert validate(folder, environment(tmp_path)) == []
