"""The parts of an encoding: contiguous documents that one worker encodes, kept where the next attempt at the same work finds them.

    rows-<first>-<end>.arrow     the encoded rows
    report-<first>-<end>.json    written last: size and sha256 of the rows, features, tally, and the identity of the work

A part is taken up only where both files are whole and the identity is that of the work: the same spec and functions, encoded by the same
trainer with the same libraries.
"""

import json
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docml_contract
import docml_trainer
from docml_contract.base import digest
from docml_contract.manifests import sha256_file, write_atomically
from docml_contract.names import SPEC
from docml_trainer.container import Folders

if TYPE_CHECKING:
    import pyarrow as pa

PART = 256  # documents that a worker takes at a time: no more is lost with a killed one, and none idles for long at the end
# Left beside the parts by an attempt that ended since too many documents had failed: the next one encodes those again.
TOO_MANY_FAILED = "too-many-failed"


@dataclass(frozen=True)
class Part:
    """Contiguous documents: their positions, and the files that their worker reads and writes."""

    positions: range
    scratch: Path
    kept: Path  # the folder of the rows and the report
    identity: str

    @property
    def input(self) -> Path:
        """The documents, an Arrow stream."""
        return self._file(self.scratch, "input", "arrow")

    @property
    def draft(self) -> Path:
        """The rows until they are complete."""
        return self._file(self.scratch, "draft", "arrow")

    @property
    def rows(self) -> Path:
        """The encoded rows, an Arrow stream."""
        return self._file(self.kept, "rows", "arrow")

    @property
    def report(self) -> Path:
        """What the rows are; a part with a report is finished."""
        return self._file(self.kept, "report", "json")

    def _file(self, folder: Path, kind: str, suffix: str) -> Path:
        return folder / f"{kind}-{self.positions.start:09d}-{self.positions.stop:09d}.{suffix}"

    def read_input(self) -> "pa.Table":
        """The documents, as `Documents.to_table` gives them."""
        import pyarrow as pa

        with pa.ipc.open_stream(self.input.read_bytes()) as reader:
            return reader.read_all()

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Keep the drafted rows, then the report with these facts."""
        shutil.move(self.draft, self.rows)
        content = {
            "identity": self.identity,
            "positions": [self.positions.start, self.positions.stop],
            "rows": {"size": self.rows.stat().st_size, "sha256": sha256_file(self.rows)},
            **facts,
        }
        write_atomically(self.report, json.dumps({"sha256": digest(content), "content": content}).encode())

    def read_report(self) -> dict[str, Any]:
        """The facts of a finished part. ValueError if they are not what was written."""
        written = json.loads(self.report.read_bytes())
        content: dict[str, Any] = written["content"]
        if digest(content) != written["sha256"]:
            raise ValueError("its report differs from its sha256")
        return content

    def find_problem(self) -> str | None:
        """Why a part cannot be taken up, or None."""
        try:
            content = self.read_report()
            if content["identity"] != self.identity:
                return "other functions, settings, documents or libraries made it"
            if content["positions"] != [self.positions.start, self.positions.stop]:
                return "it holds other documents than its name says"
            rows = content["rows"]
            if self.rows.stat().st_size != rows["size"] or sha256_file(self.rows) != rows["sha256"]:
                return "its rows differ from its report"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{type(error).__name__}: {error}"
        return None


@dataclass(frozen=True)
class KeptParts:
    """Where the parts of one work lie: unfinished ones in `scratch`, finished ones in `folder`, an earlier attempt's there too, or in `earlier`."""

    scratch: Path
    folder: Path
    earlier: Path
    identity: str

    @classmethod
    def of_one_attempt(cls, scratch: Path) -> "KeptParts":
        """Parts that nobody takes up."""
        return cls(scratch, scratch, scratch, "")

    def find(self, positions: range) -> list[Part]:
        """Finished parts of these documents, in order, none of which overlap. What cannot be taken up is said and passed over."""
        again = any((folder / TOO_MANY_FAILED).exists() for folder in (self.folder, self.earlier))
        found: list[Part] = []
        for part in sorted(self._written(), key=lambda part: (part.positions.start, part.positions.stop)):
            first = found[-1].positions.stop if found else positions.start
            if not (first <= part.positions.start < part.positions.stop <= positions.stop):
                continue  # another host's, or cut otherwise
            problem = part.find_problem()
            if problem is None and again and part.read_report()["tally"]["failed"]:
                problem = "it has documents that could not be encoded: they are tried again"
            if problem is None:
                found.append(part)
            else:
                print(f"The part {part.rows.name} of an earlier attempt is not taken: {problem}", flush=True)
        return found

    def note_too_many_failed(self) -> None:
        """Let the next attempt encode anew the parts with documents that could not be encoded."""
        (self.folder / TOO_MANY_FAILED).touch()

    def _written(self) -> Iterator[Part]:
        for folder in (self.folder, self.earlier):
            for path in folder.glob("report-*.json"):
                first, _, end = path.stem.removeprefix("report-").partition("-")
                if first.isdecimal() and end.isdecimal():
                    yield Part(range(int(first), int(end)), self.scratch, folder, self.identity)


def cut(positions: range, finished: Sequence[Part], processes: int, kept: KeptParts) -> list[Part]:
    """The parts that are left beside the finished ones: at least one for each process, as far as there are documents."""
    edges = [positions.start, *(edge for part in finished for edge in (part.positions.start, part.positions.stop))]
    edges.append(positions.stop)
    gaps = [range(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]
    left = sum(map(len, gaps))
    wanted = max(min(processes, left), -(-left // PART))
    parts = []
    for gap in gaps:
        count = max(1, round(wanted * len(gap) / left))
        cuts = [gap.start + len(gap) * index // count for index in range(count + 1)]
        parts += [Part(range(*ends), kept.scratch, kept.folder, kept.identity) for ends in pairwise(cuts)]
    return parts


def identify(folders: Folders) -> str:
    """Hash of what decides the rows of a preparation: its spec and the files beside it (the functions, the table of documents), the image,
    this trainer's source, the installed libraries and Python.
    """
    spec, channel = folders.spec(), folders.channel("spec")
    files = [
        [path.name, sha256_file(path)] for path in sorted(channel.iterdir()) if path.is_file() and path.name != SPEC
    ]
    packages = (Path(str(module.__file__)).parent for module in (docml_contract, docml_trainer))
    source = [[path.name, sha256_file(path)] for package in packages for path in sorted(package.rglob("*.py"))]
    found = {path.name for entry in sys.path for path in Path(entry).glob("*.dist-info")}
    return digest([spec.spec_hash, files, spec.compute.image, source, sorted(found), platform.python_version()])
