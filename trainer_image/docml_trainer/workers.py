"""Encoding in several processes: started fresh (spawned), watched, and never waited for in vain.

Each worker maps its contiguous part of the documents with `datasets`, in batches, into one Arrow stream, so its memory does not
grow with the number of documents. Workers tell in shared memory what they are at; a document that takes too long is named.
"""

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docml_contract.jobs import PrepareTask
from docml_contract.manifests import write_atomically
from docml_trainer.documents import Documents
from docml_trainer.errors import DataError, TrainerError, UserCodeError
from docml_trainer.functions import Context, UserFunctions

if TYPE_CHECKING:
    import pyarrow as pa

    from docml_trainer.encoding import Document

BATCH = 64  # documents
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 3.0
STARTED, FIRST, COUNT, DONE = range(4)  # fields of a worker's slot in shared memory
SLOT = 4
LOADING = -1.0  # FIRST while the experimenter's module is being loaded
_ERRORS = {error.__name__: error for error in (UserCodeError, DataError)}


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


def encode(
    documents: Documents,
    positions: range,
    plan: Plan,
    folder: Path,
    *,
    processes: int,
    stuck_seconds: float,
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Encode `positions` into `folder`: `rows-*.arrow` in order. Returns the workers' reports (features, tally), in order.

    Raises UserCodeError or DataError as soon as one worker does; no process outlives the call.
    """
    parts = _parts(positions, processes, folder)
    context = get_context("spawn")
    slots = context.RawArray("d", SLOT * len(parts))
    for part in parts:
        _write_input(documents, part)
    workers: list[BaseProcess] = [
        context.Process(target=_work, args=(plan, part, slots, os.getpid()), daemon=True, name=f"encoder-{part.index}")
        for part in parts
    ]
    try:
        with _tokenizer_environment(plan.parallel_tokenizer):
            for worker in workers:
                worker.start()
        _load_meanwhile()
        _watch(workers, parts, slots, documents, plan, stuck_seconds, progress)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.kill()
                worker.join()
    return [json.loads(part.file("report").read_bytes()) for part in parts]


def _load_meanwhile() -> None:
    """The libraries that this process needs at the end take seconds to load, as do the workers': both at once."""
    import datasketch  # noqa: F401

    import docml_trainer.rows  # noqa: F401


def _parts(positions: range, processes: int, folder: Path) -> list[Part]:
    count = max(1, min(processes, len(positions)))
    cuts = [positions.start + len(positions) * index // count for index in range(count + 1)]
    return [Part(index, range(cuts[index], cuts[index + 1]), folder) for index in range(count)]


def _write_input(documents: Documents, part: Part) -> None:
    import pyarrow as pa

    table = documents.to_table(part.positions)
    with pa.OSFile(str(part.file("input")), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


@contextmanager
def _tokenizer_environment(parallel: bool) -> Any:
    """A tokenizer's own threads are for a lone worker; several workers would only get into each other's way."""
    wanted = {"TOKENIZERS_PARALLELISM": "true" if parallel else "false"}
    if not parallel:
        wanted |= {"OMP_NUM_THREADS": "1"}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _watch(
    workers: Sequence[BaseProcess],
    parts: Sequence[Part],
    slots: Any,
    documents: Documents,
    plan: Plan,
    stuck_seconds: float,
    progress: Callable[[int, int], None],
) -> None:
    """Return when all workers have ended well; raise when one has not, or is stuck."""
    total = sum(len(part.positions) for part in parts)
    told = 0.0
    while True:
        alive = [worker.is_alive() for worker in workers]
        for worker, part in zip(workers, parts, strict=True):
            if worker.exitcode not in (None, 0):
                _raise_end(worker, part, slots, documents)
        if not any(alive):
            progress(total, total)
            return
        for worker, part, running in zip(workers, parts, alive, strict=True):
            started = slots[part.index * SLOT + STARTED]
            if running and started and time.monotonic() - started > stuck_seconds:
                _raise_stuck(worker, part, slots, documents, plan, stuck_seconds)
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            progress(sum(int(slots[part.index * SLOT + DONE]) for part in parts), total)
        time.sleep(POLL_SECONDS)


def _raise_end(worker: BaseProcess, part: Part, slots: Any, documents: Documents) -> None:
    """A worker ended badly: with a report of its error, or without a word (killed)."""
    if part.file("report").exists():
        report = json.loads(part.file("report").read_bytes())
        raise _ERRORS.get(report["error"], TrainerError)(report["message"])
    code = worker.exitcode or 0
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    hint = " (out of memory? a larger instance or fewer PREPARATION_PROCESSES help)" if code == -signal.SIGKILL else ""
    raise DataError(f"an encoding process {end}{hint} while it was at {_at(part, slots, documents)}")


def _raise_stuck(
    worker: BaseProcess, part: Part, slots: Any, documents: Documents, plan: Plan, stuck_seconds: float
) -> None:
    """Name the document that does not come back; in a batch it is found by encoding the documents one by one."""
    first, count = int(slots[part.index * SLOT + FIRST]), int(slots[part.index * SLOT + COUNT])
    where = _at(part, slots, documents)
    stack = _stack_of(worker, part)
    worker.kill()
    if count > 1:
        alone = part.folder / "alone"
        alone.mkdir()
        single = Plan(**{**vars(plan), "batch": 1})
        encode(
            documents,
            range(first, first + count),
            single,
            alone,
            processes=1,
            stuck_seconds=stuck_seconds,
            progress=lambda done, total: None,
        )
        where += "; one by one they did"
    raise UserCodeError(
        f"{plan.functions.name} has not returned within {stuck_seconds:g} s while it was at {where}. It was here:\n{stack}"
    )


def _at(part: Part, slots: Any, documents: Documents) -> str:
    first, count = slots[part.index * SLOT + FIRST], int(slots[part.index * SLOT + COUNT])
    if first == LOADING:
        return "loading the module"
    if not slots[part.index * SLOT + STARTED]:
        return "no document"
    named = f"artifact {documents.guids[int(first)]} (label {documents.labels[int(first)]!r})"
    return named if count == 1 else f"a batch of {count} documents from {named}"


def _stack_of(worker: BaseProcess, part: Part) -> str:
    """The worker's Python stack, innermost call first."""
    if worker.pid is None or not part.stack.exists():
        return "(no stack)"
    os.kill(worker.pid, signal.SIGUSR1)
    deadline = time.monotonic() + 2
    while not part.stack.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    return "\n".join(part.stack.read_text().splitlines()[:12])


# --- in the worker process


def _work(plan: Plan, part: Part, slots: Any, parent: int) -> None:
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


def _documents(batch: dict[str, list[Any]], plan: Plan) -> "list[Document]":
    from docml_trainer.encoding import Document

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
