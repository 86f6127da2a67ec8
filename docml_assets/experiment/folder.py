"""An experiment's folder: its two files, as they were when they were read."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from docml_assets.errors import ExperimentError
from docml_assets.experiment.settings.settings import Settings, parse_settings
from docml_contract.names import USER_FUNCTIONS, check_experiment_name

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
        return cls(name, path, read_text(path / SETTINGS), read_text(path / USER_FUNCTIONS))

    @cached_property
    def settings(self) -> Settings:
        """The parsed settings; SettingsError with all mistakes."""
        return parse_settings(self.settings_text, self.path / SETTINGS)


def read_text(path: Path) -> str:
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
