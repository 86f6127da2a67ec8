"""A document on its way through the encoder, and what became of it where it is no row."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MAX_FAILURES_KEPT = 100


@dataclass(frozen=True)
class Document:
    """One document on its way through the encoder."""

    position: int
    guid: str
    label: str
    files: Mapping[str, Path]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """A document that could not be encoded."""

    artifact_guid: str
    label: str
    file: str
    error: str

    def __str__(self) -> str:
        return f"artifact {self.artifact_guid} (label {self.label!r}, file {self.file}): {self.error}"


class Instance(dict[str, Path]):
    """The mapping that encode_data gets; remembers the file that was asked for last, to name it when reading fails."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        super().__init__(files)
        self.asked: str | None = None

    def __getitem__(self, file: str) -> Path:
        self.asked = file
        return super().__getitem__(file)


@dataclass
class Tally:
    """What became of the documents that are no rows."""

    returned_none: dict[str, int] = field(default_factory=dict)  # by label
    failed: dict[str, int] = field(default_factory=dict)  # by label
    failures: list[Failure] = field(default_factory=list)  # the first ones

    def drop(self, label: str) -> None:
        self.returned_none[label] = self.returned_none.get(label, 0) + 1

    def fail(self, failure: Failure) -> None:
        self.failed[failure.label] = self.failed.get(failure.label, 0) + 1
        if len(self.failures) < MAX_FAILURES_KEPT:
            self.failures.append(failure)

    def add(self, other: "Tally") -> None:
        """Count another tally's documents as well."""
        for mine, theirs in ((self.returned_none, other.returned_none), (self.failed, other.failed)):
            for label, count in theirs.items():
                mine[label] = mine.get(label, 0) + count
        self.failures = (self.failures + other.failures)[:MAX_FAILURES_KEPT]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Tally":
        failures = [Failure(**failure) for failure in content["failures"]]
        return cls(dict(content["returned_none"]), dict(content["failed"]), failures)
