"""USE_CASE: what an experiment does with the rows of its query, found as text and frozen with the claim. Nothing of it is executed here.

`classification` takes the rows as they are; `mapped` renames labels by the folder's labels.csv; `pages` makes each page of an artifact a
document of its own; `./use_case.py` is a module of the folder; any other name is that of an installed package's entry point in the group
`docml.use_cases`, which points to a module.
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from functools import cached_property
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from itertools import accumulate
from pathlib import Path

from pydantic import Field

from docml_assets.errors import Problem, SettingsError, nearest
from docml_assets.experiment.functions import check_module, defined_functions
from docml_assets.experiment.source import functions_digest
from docml_contract.base import Document, digest
from docml_contract.use_cases import UseCaseCode

GROUP = "docml.use_cases"
CLASSIFICATION = "classification"
MAPPED = "mapped"
PAGES = "pages"
OWN = "./use_case.py"
LABEL_MAP = "labels.csv"
HEADER = ["label", "becomes"]
PARAMETERS = {"labels": ("table",), "files": ("artifact", "names"), "combine": ("predictions",)}
# What the worker's Python must have, by function
NEEDS = {"labels": ("pandas", "pyarrow"), "combine": ("pandas",)}
# Beyond this it was not written by hand: it would keep every tick busy that looks at the folder.
MAX_CHARACTERS = 1_000_000


class UseCase(Document):
    """A use case as it was when its run was claimed."""

    name: str = Field(description="USE_CASE")
    text: str = Field(description="the module, or labels.csv; empty for `pages`")
    package: str | None = Field(None, description="the distribution that a plug-in comes from")
    version: str | None = Field(None, description="of the package")

    @property
    def files(self) -> dict[str, bytes]:
        """The file that holds the text: its name -> its content."""
        name = LABEL_MAP if self.name == MAPPED else "use_case.py"
        return {name: self.text.encode()} if self.text else {}

    @cached_property
    def functions(self) -> tuple[str, ...]:
        """Which of the three functions the module has."""
        return () if self.name in (MAPPED, PAGES) else tuple(sorted(defined_functions(self.text, PARAMETERS)))

    @property
    def makes_units(self) -> bool:
        """Whether every unit of an artifact is a document. Where not, `labels` may still make some that are."""
        return self.name == PAGES or "combine" in self.functions

    def code(self, *, units: bool) -> UseCaseCode:
        """What is needed to call its functions. units: whether the run has any."""
        text = "" if self.name == MAPPED else self.text
        return UseCaseCode(name=self.name, text=text, functions=self.functions, units=units)

    @property
    def reconciling_digest(self) -> str:
        """What decides what it makes of the same rows and files."""
        if self.name == MAPPED:
            return hashlib.sha256(repr(sorted(self.label_map.items())).encode()).hexdigest()
        found = functions_digest(self.text, ["labels", "files"])
        return digest([found, "units"]) if self.makes_units else found

    @property
    def combining_digest(self) -> str | None:
        """What decides the answer about an artifact from the same answers about its units. None: their mean."""
        return functions_digest(self.text, ["combine"]) if "combine" in self.functions else None

    @cached_property
    def label_map(self) -> dict[str, str]:
        """labels.csv: label -> what becomes of it; an empty text leaves its rows out."""
        _, *rows = csv.reader(io.StringIO(self.text))
        return dict(row for row in rows if row)

    def describe(self) -> str:
        """Its name, where it comes from, and the hash of its text."""
        source = f" of {self.package} {self.version}" if self.package else ""
        return f"{self.name}{source} (sha256 {hashlib.sha256(self.text.encode()).hexdigest()[:16]})"


def find_use_case(name: str, folder: Path, where: tuple[str, int]) -> UseCase | None:
    """The use case of that name, None for `classification`. SettingsError with all mistakes.

    where: file and line of USE_CASE.
    """
    if name == CLASSIFICATION:
        return None
    if name == PAGES:
        return UseCase(name=name, text="")
    if name in (MAPPED, OWN):
        path = folder / (LABEL_MAP if name == MAPPED else OWN)
        text = _read(path, name, where)
        problems = _map_problems(text, str(path)) if name == MAPPED else _module_problems(text, str(path))
        found = UseCase(name=name, text=text)
    else:
        entry = _installed(name, where)
        text = _module_text(entry, where)
        problems = _module_problems(text, f"{entry.module} of {entry.dist.name}" if entry.dist else entry.module)
        found = UseCase(
            name=name,
            text=text,
            package=entry.dist.name if entry.dist else None,
            version=entry.dist.version if entry.dist else None,
        )
    if problems:
        raise SettingsError(problems)
    return found


def _read(path: Path, name: str, where: tuple[str, int]) -> str:
    """The text of a use case's file. SettingsError where it cannot be read, or is none that somebody wrote."""
    reason = f"more than {MAX_CHARACTERS:,} characters"
    try:
        with path.open(encoding="utf-8-sig") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
        if len(text) <= MAX_CHARACTERS:
            return text
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
    except OSError as error:
        reason = error.strerror or str(error)
    found = f"USE_CASE = {name}, but {path}: {reason}"
    raise SettingsError(
        [Problem(*where, found, f"a file {path.name} in UTF-8", f"write it, or set USE_CASE = {CLASSIFICATION}")]
    )


def _installed(name: str, where: tuple[str, int]) -> EntryPoint:
    """The one entry point of that name."""
    found = {(entry.name, entry.dist.name if entry.dist else ""): entry for entry in entry_points(group=GROUP)}
    mine = [entry for (known, _), entry in found.items() if known == name]
    if len(mine) > 1:
        packages = " and ".join(sorted(entry.dist.name for entry in mine if entry.dist))
        raise SettingsError(
            [Problem(*where, f"USE_CASE = {name}, which {packages} both have", "one package", "uninstall the others")]
        )
    if not mine:
        known = sorted({CLASSIFICATION, MAPPED, PAGES, OWN, *(known for known, _ in found)})
        guess = nearest(name, known)
        remedy = f"did you mean {guess}?" if guess else f"install the package that brings {name}"
        raise SettingsError([Problem(*where, f"USE_CASE = {name}", f"one of {', '.join(known)}", remedy)])
    return mine[0]


def _module_text(entry: EntryPoint, where: tuple[str, int]) -> str:
    """The module's source, which lies where Python would import it from."""
    path: Sequence[str] | None = None
    spec = None
    for module in accumulate(entry.module.split("."), lambda outer, inner: f"{outer}.{inner}"):
        spec = PathFinder.find_spec(module, path)
        if spec is None:
            break
        path = list(spec.submodule_search_locations or ())
    if entry.attr or spec is None or not spec.origin or not spec.origin.endswith(".py"):
        remedy = f'write {entry.name} = "package.module" in [project.entry-points."{GROUP}"], and install it again'
        raise SettingsError([Problem(*where, f"USE_CASE = {entry.name}, which is {entry.value}", "a module", remedy)])
    return _read(Path(spec.origin), entry.name, where)


def _module_problems(text: str, path: str) -> list[Problem]:
    return check_module(text, path, PARAMETERS)


def _map_problems(text: str, path: str) -> list[Problem]:
    reader = csv.reader(io.StringIO(text))
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        return [Problem(path, reader.line_num, f"what is not CSV: {error}", "lines of two texts", "correct the line")]
    if not rows or rows[0][1] != HEADER:
        return [Problem(path, 1, "another first line", ",".join(HEADER), "begin with it")]
    problems, seen = [], dict[str, str]()
    for line, row in rows[1:]:
        if not row:  # an empty line, at the end for example
            continue
        if len(row) != 2 or not row[0]:
            found = {1: "one text alone", 2: "an empty label"}.get(len(row), f"{len(row)} texts")
            problems.append(Problem(path, line, found, "a label, a comma, and what becomes of it", "correct it"))
        elif row[0] in seen:
            found = f"the label {row[0]!r} a second time"
            problems.append(Problem(path, line, found, "each label once", "remove one of the lines"))
        else:
            seen[row[0]] = row[1]
    return problems
