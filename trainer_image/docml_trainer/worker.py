"""One encoding process: takes one part of the documents after the other, and maps each, in batches, into an Arrow stream.

Its memory does not grow with the number of documents. What it is at stands in shared memory, for the process that waits.
"""

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docml_contract.jobs import PrepareTask
from docml_contract.manifests import write_atomically
from docml_trainer.errors import TrainerError
from docml_trainer.functions import Context, UserFunctions
from docml_trainer.outcomes import Document

if TYPE_CHECKING:
    import pyarrow as pa

    from docml_trainer.encoding import Encoder

STARTED, FIRST, COUNT, DONE = range(4)  # fields of a worker's slot in shared memory
SLOT = 4
LOADING = -1.0  # FIRST while the experimenter's module is being loaded


@dataclass(frozen=True)
class Plan:
    """What every worker is told."""

    functions: Path
    artifacts: Path
    task: PrepareTask
    label_names: tuple[str, ...]
    batch: int
    parallel_tokenizer: bool

    @property
    def sign(self) -> bool:
        return self.task.near_duplicate_threshold < 1

    @property
    def contexts(self) -> tuple[Context, ...]:
        names, labels = self.task.model_names, self.label_names
        return tuple(Context.of(name, names, labels, self.task.own_hyperparameters) for name in names)


@dataclass(frozen=True)
class Part:
    """Contiguous documents that one worker encodes: positions, and the files that it reads and writes."""

    index: int
    positions: range
    folder: Path

    def file(self, kind: str) -> Path:
        """`input` and `rows` are Arrow streams, `report` is JSON."""
        return self.folder / f"{kind}-{self.index:05d}.{'json' if kind == 'report' else 'arrow'}"


@dataclass(frozen=True)
class Seat:
    """One worker's place: its number, and the files in which it leaves its last words."""

    index: int
    folder: Path

    @property
    def error(self) -> Path:
        """Why it ended badly."""
        return self.folder / f"error-{self.index:05d}.json"

    @property
    def stack(self) -> Path:
        """Where it dumps its stack when asked."""
        return self.folder / f"stack-{self.index:05d}.txt"


def work(plan: Plan, seat: Seat, parts: Sequence[Part], taken: Any, slots: Any, parent: int) -> None:
    """Entry point of a worker. `taken`: how many parts have been taken by the workers so far."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    with seat.stack.open("w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
        try:
            _encode_parts(plan, seat, parts, taken, slots, parent)
        except Exception as error:
            if not isinstance(error, TrainerError):
                traceback.print_exc()
            message = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
            write_atomically(seat.error, json.dumps({"error": type(error).__name__, "message": message}).encode())
            sys.exit(1)
        finally:
            faulthandler.unregister(signal.SIGUSR1)


def _encode_parts(plan: Plan, seat: Seat, parts: Sequence[Part], taken: Any, slots: Any, parent: int) -> None:
    base = seat.index * SLOT

    def begin(first: float, count: int) -> None:
        if os.getppid() != parent:
            os._exit(1)  # nobody waits any more
        slots[base + FIRST], slots[base + COUNT] = first, count
        slots[base + STARTED] = time.monotonic()

    def finished(count: int) -> None:
        slots[base + STARTED] = 0
        slots[base + DONE] += count

    begin(LOADING, 0)
    functions = UserFunctions.load(plan.functions)

    import datasets

    from docml_trainer.encoding import Encoder

    datasets.disable_caching()
    datasets.disable_progress_bars()
    encoder = Encoder(functions, plan.contexts, plan.sign, begin)
    while (index := _take(taken)) < len(parts):
        _encode_part(plan, parts[index], encoder, finished)


def _take(taken: Any) -> int:
    """The next part that no worker has."""
    with taken.get_lock():
        taken.value += 1
        return int(taken.value) - 1


def _encode_part(plan: Plan, part: Part, encoder: "Encoder", finished: Callable[[int], None]) -> None:
    import datasets
    import pyarrow as pa

    from docml_trainer.outcomes import Tally

    encoder.tally = Tally()

    def encode_batch(batch: dict[str, list[Any]]) -> "pa.Table":
        rows = encoder(_documents(batch, plan))
        finished(len(batch["position"]))
        return rows

    with pa.ipc.open_stream(part.file("input").read_bytes()) as reader:
        documents = datasets.Dataset(reader.read_all(), fingerprint="documents")
    documents.map(
        encode_batch,
        batched=True,
        batch_size=plan.batch,
        writer_batch_size=plan.batch,
        features=datasets.Features.from_arrow_schema(encoder.schema),
        # A fingerprint sees the function and the paths, not what the files hold: nothing is ever taken from a cache.
        load_from_cache_file=False,
        cache_file_name=str(part.file("rows")),
        new_fingerprint="rows",
    )
    report = {
        "features": encoder.features.to_dict(),
        "near_duplicate_feature": encoder.near_duplicate_feature,
        "tally": encoder.tally.to_json(),
    }
    write_atomically(part.file("report"), json.dumps(report).encode())


def _documents(batch: dict[str, list[Any]], plan: Plan) -> list[Document]:
    documents = []
    for position, guid, label, paths in zip(
        *(batch[key] for key in ("position", "artifact_guid", "label", "paths")), strict=True
    ):
        found = {
            file: path and plan.artifacts / path for file, path in zip(plan.task.model_input_files, paths, strict=True)
        }
        missing = tuple(file for file, path in found.items() if path is None)
        files = {file: path for file, path in found.items() if file not in missing}
        documents.append(Document(position, guid, label, files, missing))
    return documents
