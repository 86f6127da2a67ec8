"""Units: the parts of an artifact that are documents of their own, its pages for example.

A unit is named as its files are, without what follows the last dot: `page_03.png` and `page_03.json` are the unit `page_03`. It consists of
the artifact's files of this name that patterns of MODEL_INPUT_FILES mean, and of those that plain names mean, which all units share.
Where every document has one GUID, a unit's is `<artifact_guid>/<unit>`: an artifact's has no slash.
"""

from collections.abc import Iterable, Mapping, Sequence

from docml_contract.file_names import is_pattern, matches, natural_order


def unit_of(file: str) -> str:
    """The unit that a file belongs to."""
    return file.rpartition(".")[0] or file


def units_in(files: Iterable[str], entries: Iterable[str]) -> list[str]:
    """The units that an artifact with these files has, in natural order. entries: MODEL_INPUT_FILES."""
    patterns = [entry for entry in entries if is_pattern(entry)]
    found = {unit_of(file) for file in files if any(matches(file, entry) for entry in patterns)}
    return sorted(found, key=natural_order)


def files_of_unit(files: Iterable[str], entries: Sequence[str], unit: str) -> list[str]:
    """Those of an artifact's files that the unit consists of."""
    return [file for file in files if any(matches(file, entry) and _is_of(file, entry, unit) for entry in entries)]


def _is_of(file: str, entry: str, unit: str) -> bool:
    return not is_pattern(entry) or unit_of(file) == unit


def document_guid(artifact: str, unit: str | None) -> str:
    """The GUID of a document: an artifact, or a unit of one."""
    return artifact if unit is None else f"{artifact}/{unit}"


def split_guid(guid: str) -> tuple[str, str | None]:
    """The artifact of a document, and which unit of it the document is; None: all of it."""
    artifact, slash, unit = guid.partition("/")
    return artifact, unit if slash else None


def artifact_of(guid: str) -> str:
    """The artifact of a document."""
    return guid.partition("/")[0]


def by_artifact(guids: Iterable[str]) -> dict[str, list[int]]:
    """Artifact -> the positions of its documents among `guids`, both in the order of their first appearance."""
    found: dict[str, list[int]] = {}
    for position, guid in enumerate(guids):
        found.setdefault(artifact_of(guid), []).append(position)
    return found


def mean(units: Sequence[Sequence[float]]) -> list[float]:
    """The mean of the units' probabilities, label by label: the answer about their artifact where a use case has no `combine`."""
    return [sum(of_label) / len(units) for of_label in zip(*units, strict=True)]


def most_frequent(labels: Sequence[str]) -> str:
    """The label that most units of an artifact have; of equally many the first one's."""
    counts: Mapping[str, int] = {label: labels.count(label) for label in dict.fromkeys(labels)}
    return max(counts, key=lambda label: counts[label])
