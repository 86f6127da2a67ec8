"""What reconciliation leaves out, and why: counted in the funnel, shown in tables; and what it cannot go on from.

ReconciliationError      labels and files do not come together
├── NothingLeft          no artifact passed all stages
└── TooManyFailures      more artifacts failed than MAX_FAILED_SHARE allows
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from docml_assets.errors import DocmlError

# Rows kept of a table that people look at; the funnel counts them all.
MAX_ROWS = 10_000

_SCHEMAS = {
    "refused": ("source", "name", "reason"),
    "duplicates": ("file_hash", "kept", "artifact_guid"),
    "conflicts": ("by", "value", "artifact_guid", "label"),
    "labels_without_files": ("artifact_guid", "label"),
    "files_without_labels": ("artifact_guid",),
    "near_misses": ("artifact_guid", "in_production", "reason"),
    "relabelled": ("label", "becomes", "artifacts"),
    "not_mapped": ("label", "rows"),
    "units_without_files": ("artifact_guid", "unit"),
    "failures": ("artifact_guid", "file", "reason", "traceback"),
}
_OF_USE_CASES = ("relabelled", "not_mapped", "units_without_files")


class ReconciliationError(DocmlError):
    """Labels and files do not come together."""


class NothingLeft(ReconciliationError):
    """No artifact passed all stages."""


class TooManyFailures(ReconciliationError):
    """More artifacts failed than MAX_FAILED_SHARE allows."""


def findings_table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """The table called `name` from its first MAX_ROWS rows; all columns are text."""
    schema = pa.schema([(column, pa.string()) for column in _SCHEMAS[name]])
    kept = [dict(row) for row, _ in zip(rows, range(MAX_ROWS), strict=False)]
    return pa.Table.from_pylist(kept, schema=schema)


def printable(name: object) -> str:
    """An untrusted name as printable text of bounded length."""
    text = ascii(name) if isinstance(name, str) else str(name)
    return text if len(text) <= 120 else f"{text[:117]}..."


@dataclass
class ReconciliationFindings:
    """The funnel (stage -> count) and the tables of what was left out."""

    funnel: dict[str, int] = field(default_factory=dict)
    refused: pa.Table = field(default_factory=lambda: findings_table("refused", []))
    duplicates: pa.Table = field(default_factory=lambda: findings_table("duplicates", []))
    conflicts: pa.Table = field(default_factory=lambda: findings_table("conflicts", []))
    labels_without_files: pa.Table = field(default_factory=lambda: findings_table("labels_without_files", []))
    files_without_labels: pa.Table = field(default_factory=lambda: findings_table("files_without_labels", []))
    near_misses: pa.Table = field(default_factory=lambda: findings_table("near_misses", []))
    relabelled: pa.Table = field(default_factory=lambda: findings_table("relabelled", []))
    not_mapped: pa.Table = field(default_factory=lambda: findings_table("not_mapped", []))
    units_without_files: pa.Table = field(default_factory=lambda: findings_table("units_without_files", []))
    failures: pa.Table = field(default_factory=lambda: findings_table("failures", []))

    def together(self, other: "ReconciliationFindings") -> "ReconciliationFindings":
        """What two stages found that ran side by side: labels, and files."""
        refused = pa.concat_tables([self.refused, other.refused])
        return replace(self, funnel=self.funnel | other.funnel, refused=refused)

    def first_examples(self) -> list[str]:
        """What people should know of the labels: a sentence for each way in which they miss the files, with an example of each side."""
        found = []
        if count := self.funnel.get("without file_hash"):
            prefix = "without file_hash: "
            why = [
                f"{stage.removeprefix(prefix)}: {n:,}" for stage, n in self.funnel.items() if stage.startswith(prefix)
            ]
            found.append(
                f"{count:,} label rows have no file_hash ({', '.join(why)}): duplicates among them are not found"
            )
        counted: dict[str, int] = {}
        for row in self.near_misses.to_pylist():
            counted[row["reason"]] = counted.get(row["reason"], 0) + 1
        for row in self.near_misses.to_pylist():
            if count := counted.pop(row["reason"], 0):
                found.append(
                    f"{count:,} artifact_guid differ from production's in {row['reason']} only: the label's "
                    f"{printable(row['artifact_guid'])}, in production {printable(row['in_production'])}"
                )
        for row in self.refused.to_pylist():
            if row["reason"] not in counted:
                counted[row["reason"]] = 0
                found.append(f"{row['source']} are refused, such as {row['name']}: {row['reason']}")
        return found

    def say_why_nothing_is_left(self) -> str:
        """The stages at which everything was left out, with examples of either side."""
        stages = "; ".join(f"{stage}: {count}" for stage, count in self.funnel.items())
        examples = self.first_examples()
        labels, files = self.labels_without_files["artifact_guid"], self.files_without_labels["artifact_guid"]
        if len(labels) and len(files) and not self.near_misses.num_rows:
            ours, theirs = printable(labels[0].as_py()), printable(files[0].as_py())
            examples.append(f"a label's artifact_guid is {ours}, a folder in production {theirs}")
        elif len(labels) and not len(files):
            ours = printable(labels[0].as_py())
            examples.append(
                f"production has no <artifact_guid>/<file> of FILES_FROM_PROD, neither for {ours} nor for another label"
            )
        return (
            f"no artifact is left after joining labels and files ({stages}); check LABELS_QUERY and FILES_FROM_PROD"
            + "".join(f"\n  {example}" for example in examples)
        )

    @property
    def problems(self) -> dict[str, pa.Table]:
        """Name -> table; those of a use case only where there is something in them."""
        tables = {name: getattr(self, name) for name in _SCHEMAS}
        return {name: table for name, table in tables.items() if table.num_rows or name not in _OF_USE_CASES}
