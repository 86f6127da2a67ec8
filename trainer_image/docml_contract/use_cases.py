"""A use case's functions at work: in a sandboxed worker, wherever they are needed; nothing of them is imported here."""

import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from docml_contract.base import Document, ProcessFuncBroken, UseCaseError
from docml_contract.sandbox import TIMEOUT_SECONDS, Worker
from docml_contract.units import mean

ROWS, LABELLED = "rows.parquet", "labelled.parquet"
ASKED, CHOSEN = "artifacts.jsonl", "chosen.jsonl"
UNITS, COMBINED = "units.json", "combined.json"
ROOM_BYTES = 256_000_000  # that a function may print, or write beyond twice what it got
ARTIFACTS_AT_ONCE = 2_000  # whose units `combine` gets in one call
SUM_TOLERANCE = 1e-3  # of probabilities
DRIVER = f"""

def docml_use_case(task, directory):
    import json
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)  # which a later call could not raise again
    resource.setrlimit(resource.RLIMIT_FSIZE, (task["room"], most))

    def frame(answer, what):
        import pandas

        if not isinstance(answer, pandas.DataFrame):
            raise TypeError(f"it returned {{type(answer).__name__}}; expected a pandas DataFrame, {{what}}")
        return answer

    if task["function"] == "labels":
        import pandas

        rows = frame(labels(pandas.read_parquet(directory / {ROWS!r})), "the rows that stay")
        rows.to_parquet(directory / {LABELLED!r}, index=False)
    elif task["function"] == "files":
        with open(directory / {ASKED!r}) as asked, open(directory / {CHOSEN!r}, "w") as answers:
            for line in asked:
                artifact, names = json.loads(line)
                chosen = files(artifact, list(names))
                if not isinstance(chosen, (list, tuple, set, frozenset)):
                    raise TypeError(f"it returned {{type(chosen).__name__}}; expected a list out of the names that it got")
                answers.write(json.dumps([str(name) for name in chosen]) + "\\n")
    else:
        import pandas

        given = json.loads((directory / {UNITS!r}).read_text())
        table = pandas.DataFrame(given["rows"], columns=given["columns"])
        table.attrs["labels"] = given["labels"]
        answer = frame(combine(table), "one row per artifact")
        lacking = [name for name in ("artifact_guid", "probabilities") if name not in answer.columns]
        if lacking:
            raise TypeError(
                f"it returned the columns {{', '.join(map(str, answer.columns))}}; expected {{' and '.join(lacking)}} too"
            )
        rows = zip(answer["artifact_guid"], answer["probabilities"])
        combined = [[str(guid), [float(value) for value in values]] for guid, values in rows]
        (directory / {COMBINED!r}).write_text(json.dumps(combined))
"""


class UseCaseCode(Document):
    """What of a use case a model's answers need: use_case.json of its deployment folder."""

    name: str = Field(description="USE_CASE")
    text: str = Field(description="the module; empty for one of docml's own")
    functions: tuple[str, ...] = Field(description="that the module has, of `labels`, `files` and `combine`")
    units: bool = Field(
        description="whether an artifact's pages (or whatever its units are) are documents of their own"
    )


class UseCaseWorker:
    """One sandboxed process that calls the functions of a use case. Not for several threads at once.

    Raises UseCaseError, which says what is wrong with a function, its answer or the module.
    """

    def __init__(
        self, code: UseCaseCode, environment: Mapping[str, str], scratch: Path, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        """scratch: an empty folder, or one that does not exist yet; gone after `close()`."""
        self._code, self._scratch = code, scratch
        scratch.mkdir(mode=0o700, exist_ok=True)
        self._worker = Worker(
            self._scratch / "worker",
            code.text + DRIVER,
            environment,
            timeout,
            module="use_case.py",
            function="docml_use_case",
        )

    def __enter__(self) -> "UseCaseWorker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, and remove what it left."""
        self._worker.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def call(self, function: str, given: Mapping[str, bytes], answer: str) -> bytes:
        """The content of the file `answer`, which the function's driver makes of the files `given`."""
        what = f"{function} of the use case {self._code.name}"
        directory = Path(tempfile.mkdtemp(prefix=f"{function}-", dir=self._scratch))
        try:
            for name, content in given.items():
                (directory / name).write_bytes(content)
            room = ROOM_BYTES + 2 * sum(map(len, given.values()))
            try:
                outcome = self._worker.run({"function": function, "room": room}, directory)
            except ProcessFuncBroken as error:
                raise UseCaseError(f"{what}: {error}") from error
            if outcome.error is not None:
                self._worker.stop()  # what it printed is gone with it
                reason = outcome.error.replace("docml_use_case", function)
                if "[Errno 27]" in reason:
                    reason = f"it printed or wrote more than {room / 1e6:,.0f} MB; expected rows"
                raise UseCaseError(f"{what}: {reason}\n{outcome.traceback}".rstrip())
            path = directory / answer
            if path.is_symlink() or not path.is_file():
                raise UseCaseError(f"{what} removed what it returned")
            return path.read_bytes()
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def files(self, artifacts: Sequence[tuple[Mapping[str, Any], Sequence[str]]]) -> list[tuple[str, ...]]:
        """Of each artifact's file names the ones that it needs, in their order; all of them where the use case has no `files`.

        artifacts: what is known of each, and its files' names.
        """
        if "files" not in self._code.functions or not artifacts:
            return [tuple(names) for _, names in artifacts]
        lines = [json.dumps([dict(row), list(names)], default=str).encode() + b"\n" for row, names in artifacts]
        answers = self.call("files", {ASKED: b"".join(lines)}, CHOSEN).splitlines()
        what = f"files of the use case {self._code.name}"
        if len(answers) != len(artifacts):
            raise UseCaseError(f"{what} left {len(answers)} answers for {len(artifacts)} artifacts")
        found = []
        for (row, names), line in zip(artifacts, answers, strict=True):
            chosen = set(_json(line, what))
            if unknown := sorted(chosen - set(names)):
                raise UseCaseError(
                    f"{what} returned {unknown[0]!r} for {row.get('artifact_guid')!r}; expected some of its files: {', '.join(names)}"
                )
            found.append(tuple(name for name in names if name in chosen))
        return found

    def combine(
        self, labels: Sequence[str], units: Mapping[str, Mapping[str, Sequence[float]]]
    ) -> dict[str, list[float]]:
        """Artifact -> its probabilities, in the order of `labels`. units: artifact -> unit -> its probabilities; none is empty."""
        if "combine" not in self._code.functions:
            return {guid: mean(list(own.values())) for guid, own in units.items()}
        guids = list(units)
        found: dict[str, list[float]] = {}
        for start in range(0, len(guids), ARTIFACTS_AT_ONCE):
            some = {guid: units[guid] for guid in guids[start : start + ARTIFACTS_AT_ONCE]}
            found |= self._combine(labels, some)
        return found

    def _combine(
        self, labels: Sequence[str], units: Mapping[str, Mapping[str, Sequence[float]]]
    ) -> dict[str, list[float]]:
        rows = [
            [guid, unit, labels[best], values[best], list(values)]
            for guid, own in units.items()
            for unit, values in own.items()
            for best in [max(range(len(labels)), key=values.__getitem__)]
        ]
        columns = ["artifact_guid", "unit", "prediction", "probability", "probabilities"]
        content = json.dumps({"labels": list(labels), "columns": columns, "rows": rows}).encode()
        what = f"combine of the use case {self._code.name}"
        answers = _json(self.call("combine", {UNITS: content}, COMBINED), what)
        return _checked(what, answers, units, len(labels))


def _json(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise UseCaseError(f"{what} left an answer that cannot be read: {error}") from error


def _checked(what: str, answers: Iterable[Any], asked: Mapping[str, Any], labels: int) -> dict[str, list[float]]:
    """One answer an artifact, each with a probability a label."""
    found: dict[str, list[float]] = {}
    for guid, values in answers:
        if guid not in asked:
            raise UseCaseError(f"{what} answered about {guid!r}, of which it got no unit")
        if guid in found:
            raise UseCaseError(f"{what} answered twice about {guid!r}; expected one row per artifact")
        if len(values) != labels:
            raise UseCaseError(
                f"{what} gave {len(values)} probabilities for {guid!r}; expected one for each of {labels} labels"
            )
        total = sum(values)
        if not all(math.isfinite(value) and value >= 0 for value in values) or abs(total - 1) > SUM_TOLERANCE:
            raise UseCaseError(
                f"{what} gave {guid!r} the probabilities {values[:5]}; expected numbers from 0 on that sum to 1"
            )
        found[guid] = [value / total for value in values]
    if lacking := [guid for guid in asked if guid not in found]:
        raise UseCaseError(f"{what} gave no answer about {lacking[0]!r}; expected a row for each artifact that it got")
    return {guid: found[guid] for guid in asked}
