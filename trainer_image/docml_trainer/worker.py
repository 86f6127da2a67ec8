"""One encoding process: maps its contiguous part of the documents, in batches, into one Arrow stream.

Its memory does not grow with the number of documents. What it is at stands in shared memory, for the process that waits.
"""

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
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
    """One worker's share: positions, and the files it reads and writes."""

    index: int
    positions: range
    folder: Path

    def file(self, kind: str) -> Path:
        return self.folder / f"{kind}-{self.index:05d}.{'json' if kind == 'report' else 'arrow'}"

    @property
    def stack(self) -> Path:
        """Where a worker dumps its stack when asked."""
        return self.folder / f"stack-{self.index:05d}.txt"


def work(plan: Plan, part: Part, slots: Any, parent: int) -> None:
    """Entry point of a worker. Whatever goes wrong is in its report."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    with part.stack.open("w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
        try:
            report = _encode_part(plan, part, slots, parent)
        except Exception as error:
            if not isinstance(error, TrainerError):
                traceback.print_exc()
            message = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
            report = {"error": type(error).__name__, "message": message}
        finally:
            faulthandler.unregister(signal.SIGUSR1)
    write_atomically(part.file("report"), json.dumps(report).encode())
    sys.exit(1 if "error" in report else 0)


def _encode_part(plan: Plan, part: Part, slots: Any, parent: int) -> dict[str, Any]:
    base = part.index * SLOT

    def begin(first: float, count: int) -> None:
        if os.getppid() != parent:
            os._exit(1)  # nobody waits any more
        slots[base + FIRST], slots[base + COUNT] = first, count
        slots[base + STARTED] = time.monotonic()

    begin(LOADING, 0)
    functions = UserFunctions.load(plan.functions)

    import datasets
    import pyarrow as pa

    from docml_trainer.encoding import Encoder

    datasets.disable_caching()
    datasets.disable_progress_bars()
    encoder = Encoder(functions, plan.contexts, plan.sign, begin)
    schema = encoder.schema()

    def encode_batch(batch: dict[str, list[Any]]) -> "pa.Table":
        rows = encoder(_documents(batch, plan))
        slots[base + STARTED] = 0
        slots[base + DONE] += len(batch["position"])
        return rows

    with pa.ipc.open_stream(part.file("input").read_bytes()) as reader:
        documents = datasets.Dataset(reader.read_all(), fingerprint="documents")
    documents.map(
        encode_batch,
        batched=True,
        batch_size=plan.batch,
        writer_batch_size=plan.batch,
        features=datasets.Features.from_arrow_schema(schema),
        # A fingerprint sees the function and the paths, not what the files hold: nothing is ever taken from a cache.
        load_from_cache_file=False,
        cache_file_name=str(part.file("rows")),
        new_fingerprint="rows",
    )
    return {
        "features": encoder.features.to_dict(),
        "near_duplicate_feature": encoder.near_duplicate_feature,
        "tally": encoder.tally.to_json(),
    }


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
