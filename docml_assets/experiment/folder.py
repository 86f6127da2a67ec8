"""An experiment's folder, and everything about it that can be known before a job starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from docml_assets.errors import ExperimentError
from docml_assets.experiment.functions import check_functions, defined_functions
from docml_assets.experiment.preflight import deployment_problems, finished_in, step_problems
from docml_assets.experiment.problems import Problem, SettingsError
from docml_assets.experiment.settings.settings import Settings, parse_settings
from docml_contract.errors import BadName
from docml_contract.names import USER_FUNCTIONS, check_experiment_name
from resources.store.store import Store

SETTINGS = "settings.ini"


@dataclass(frozen=True)
class ExperimentFolder:
    """What a folder held when it was read."""

    name: str
    path: Path
    settings_text: str
    functions_source: str

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read both files. BadName if the folder's name is no experiment name; ExperimentError if a file cannot be read."""
        name = check_experiment_name(path.name)
        if not path.is_dir():
            raise ExperimentError(f"{path}: no such folder; create it with: docml new {name}")
        return cls(name, path, _read(path / SETTINGS), _read(path / USER_FUNCTIONS))

    @cached_property
    def settings(self) -> Settings:
        """The parsed settings; SettingsError with all mistakes."""
        return parse_settings(self.settings_text, self.path / SETTINGS)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ExperimentError(
            f"{path}: no such file; an experiment has settings.ini and {USER_FUNCTIONS}: restore it, or take one that "
            f"`docml new` writes"
        ) from error
    except UnicodeDecodeError as error:
        raise ExperimentError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror}; expected a file that can be read") from error


def validate(path: Path, environment: Mapping[str, str]) -> list[Problem]:
    """Everything that can be known before a job starts; an empty list means that nothing is wrong. Writes nothing.

    environment: the deployment's (DOCML_* variables).
    """
    try:
        folder = ExperimentFolder.load(path)
    except BadName as error:
        return [Problem(str(path), 0, f"the folder name {path.name!r}", str(error), "rename the folder")]
    except ExperimentError:
        return _missing_files(path)
    problems = check_functions(
        folder.functions_source, str(path / USER_FUNCTIONS), environment.get("DOCML_WORKER_PYTHON") or None
    )
    try:
        settings = folder.settings
    except SettingsError as error:
        problems += error.problems
    else:
        problems += _unmade_files(settings, folder)
        store = Store.open(environment.get("DOCML_STORE") or "./storage", environment=environment)
        finished = finished_in(store, folder.name, settings)
        problems += step_problems(settings, str(path / SETTINGS), folder.settings_text, finished)
        problems += deployment_problems(settings, environment)
    return sorted(problems, key=lambda problem: (problem.file, problem.line))


def _missing_files(path: Path) -> list[Problem]:
    """One problem a file that cannot be read; mistakes in the other one are found too."""
    problems = []
    if not path.is_dir():
        remedy = f"create it with: docml new {path.name}"
        return [Problem(str(path), 0, "no such folder", "an experiment folder", remedy)]
    for name in (SETTINGS, USER_FUNCTIONS):
        try:
            text = _read(path / name)
        except ExperimentError as error:
            found, _, remedy = str(error).removeprefix(f"{path / name}: ").partition("; ")
            problems.append(Problem(str(path / name), 0, found, f"{SETTINGS} and {USER_FUNCTIONS}", remedy))
            continue
        if name == USER_FUNCTIONS:
            problems += check_functions(text, str(path / name))
        else:
            try:
                parse_settings(text, path / name)
            except SettingsError as error:
                problems += error.problems
    return problems


def _unmade_files(settings: Settings, folder: ExperimentFolder) -> list[Problem]:
    """Files that every artifact must have in the end, though nothing makes them."""
    made = [name for name in settings.files_on_research if name not in settings.files_from_prod]
    if not made or "process_func" in defined_functions(folder.functions_source):
        return []
    return [
        Problem(
            str(folder.path / USER_FUNCTIONS),
            0,
            f"no process_func, though FILES_ON_RESEARCH names {', '.join(made)}",
            "a process_func(artifact, directory) that creates them, or files of production only",
            "write it, or name the files in FILES_FROM_PROD, or remove them from FILES_ON_RESEARCH",
        )
    ]
