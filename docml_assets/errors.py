"""The package's base exceptions, and the mistakes in an experiment folder: collected, never raised one at a time.

The tree is drawn in `docml_assets/__init__.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from docml_contract.base import ContractError
from resources.errors import ResourceError


class DocmlError(Exception):
    """The input is wrong or the work cannot go on."""


class ExperimentError(DocmlError):
    """An experiment folder is missing or unreadable."""


class ReportError(DocmlError):
    """Predictions, or what accompanies them, cannot be reported on."""


# Errors whose message says what was found, what was expected and the remedy: nobody needs their traceback.
EXPLAINED_ERRORS = (DocmlError, ContractError, ResourceError)


SHOWN = 120  # characters of a found value in a message


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is (line 0: no line to point at), what stands there, what should, and what to do."""

    file: str
    line: int
    found: str
    expected: str
    remedy: str

    @property
    def place(self) -> str:
        """`file:line`, or the file alone where no line can be pointed at."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        return f"{self.place}: found {self.found}; expected {self.expected}; {self.remedy}"


class ProblemsError(ExperimentError):
    """Carries all problems of a file; the message lists them, one a line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.file, problem.line))
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type["ProblemsError"], tuple[list[Problem]]]:
        return type(self), (self.problems,)


class SettingsError(ProblemsError):
    """Mistakes in settings.ini."""


def shown(value: object) -> str:
    """A value for a message: on one line, cut after 120 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def nearest(word: str, known: Sequence[str], cutoff: float = 0.6) -> str | None:
    """The known word that `word` most likely stands for, whatever its case."""
    folded = {name.lower(): name for name in known}
    matches = get_close_matches(word.lower().replace("-", "_"), folded, n=1, cutoff=cutoff)
    return folded[matches[0]] if matches else None
