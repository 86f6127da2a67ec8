"""An experiment's folder: its two files, as they were when they were read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Self

from docml_assets.errors import ExperimentError, Problem, shown
from docml_assets.experiment.settings.ini import parse_ini
from docml_assets.experiment.settings.settings import SECTIONS, Settings, parse_settings
from docml_assets.experiment.use_case import UseCase, find_use_case
from docml_contract.names import USER_FUNCTIONS, check_experiment_name

SETTINGS = "settings.ini"
DOCKERFILE = "sagemaker.Dockerfile"
# A file of an experiment beyond this is none that somebody wrote: it would keep every tick busy that looks at it.
MAX_CHARACTERS = 1_000_000
_NO_SHELL = re.compile(r"\s*(FROM|ARG|ENV|LABEL|COPY|ADD|WORKDIR|USER|EXPOSE|VOLUME|STOPSIGNAL)\b(.*)", re.IGNORECASE)


def remedy_for_missing(path: Path) -> str:
    """What to do where an experiment's folder is not there: another one may be meant, by its beginning or with a slip."""
    others = {other.name.lower(): other.name for other in sorted(path.parent.glob("*")) if other.is_dir()}
    name = path.name.lower()
    near = [other for other in others if other.startswith(f"{name}-")] or get_close_matches(name, others, 1, 0.8)
    guess = f"did you mean {others[near[0]]}? Otherwise " if len(near) == 1 else ""
    return f"{guess}create it with: docml new {path.name}"


@dataclass(frozen=True)
class ExperimentFolder:
    """What a folder held when it was read."""

    name: str
    path: Path
    settings_text: str
    functions_source: str

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read both files. BadName if the folder's name is not an experiment name; ExperimentError if a file cannot be read."""
        name = check_experiment_name(path.name)
        if not path.is_dir():
            raise ExperimentError(f"{path}: no such folder; {remedy_for_missing(path)}")
        return cls(name, path, read_text(path / SETTINGS), read_text(path / USER_FUNCTIONS))

    @cached_property
    def settings(self) -> Settings:
        """The parsed settings; SettingsError with all mistakes."""
        return parse_settings(self.settings_text, self.path / SETTINGS)

    @cached_property
    def use_case(self) -> UseCase | None:
        """What USE_CASE names, None for classification; SettingsError if it is not there or wrong."""
        path = str(self.path / SETTINGS)
        line = parse_ini(self.settings_text, path, SECTIONS).line("settings", "USE_CASE")
        return find_use_case(self.settings.use_case, self.path, (path, line))


def read_text(path: Path) -> str:
    """A file's text without a byte order mark, lines ended by \\n; ExperimentError if it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
        if len(text) > MAX_CHARACTERS:
            raise ExperimentError(f"{path}: more than {MAX_CHARACTERS:,} characters; move data out of it")
        return text
    except FileNotFoundError as error:
        raise ExperimentError(
            f"{path}: no such file; an experiment has settings.ini and {USER_FUNCTIONS}: restore it, or take one that "
            f"`docml new` writes"
        ) from error
    except UnicodeDecodeError as error:
        raise ExperimentError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror}; expected a file that can be read") from error


def dockerfile_problems(folder: Path) -> list[Problem]:
    """What is wrong with the text of the folder's sagemaker.Dockerfile, if it has one. Docker takes byte order marks and CRLF."""
    path = folder / DOCKERFILE
    if not path.exists():
        return []
    try:
        lines = read_text(path).splitlines()
    except ExperimentError as error:
        found, _, remedy = str(error).removeprefix(f"{path}: ").partition("; ")
        return [Problem(str(path), 0, found, "a text that Docker can read", remedy)]
    return [
        Problem(
            str(path),
            number,
            f"{shown(line)} (a comment after the instruction, which Docker takes for arguments)",
            "comments on lines of their own",
            "move it above the line",
        )
        for number, line in enumerate(lines, start=1)
        if (match := _NO_SHELL.fullmatch(line)) and re.search(r"\s#", re.sub(r"\"[^\"]*\"|'[^']*'", "", match[2]))
    ]


def experiments_root(environment: Mapping[str, str]) -> Path:
    """DOCML_EXPERIMENTS: the folder of experiment folders."""
    return Path(environment.get("DOCML_EXPERIMENTS") or "experiments")


def experiment_folders(root: Path) -> dict[str, Path]:
    """The folders below `root` that have a settings.ini, by name; hidden ones are drafts."""
    if not root.is_dir():
        return {}
    return {
        path.name: path
        for path in sorted(root.iterdir())
        if not path.name.startswith(".") and (path / SETTINGS).is_file()
    }
