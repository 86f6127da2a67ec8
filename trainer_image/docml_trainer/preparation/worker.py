"""The processes that encode: each takes one part of the documents after the other, and maps it, in batches, into an Arrow stream.

The first one loads the experimenter's module and all libraries. Where it is safe, it then forks all the workers, so that what takes
seconds to load is loaded once; otherwise it encodes by itself, and whoever waits starts the others.

Memory does not grow with the number of documents. What a worker is doing stands in shared memory, for the process that waits (`pool`).
"""

import atexit
import ctypes
import faulthandler
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docml_contract.jobs import PrepareTask
from docml_contract.manifests import write_atomically
from docml_trainer.errors import TrainerError
from docml_trainer.functions import Context, UserFunctions, can_fork, leave_threads, open_files
from docml_trainer.preparation.documents import InputDocument, Tally, read_batch
from docml_trainer.preparation.parts import Part

if TYPE_CHECKING:
    import pyarrow as pa

    from docml_trainer.preparation.encoder import Encoder

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOADING, FORKED, ALONE = range(3)  # what the first process does


class WorkerState(ctypes.Structure):
    """In shared memory: what a worker is doing."""

    _fields_ = (
        ("pid", ctypes.c_int64),
        ("started", ctypes.c_double),  # monotonic seconds; 0: at nothing
        ("loading", ctypes.c_bool),  # the experimenter's module; otherwise at the documents:
        ("first", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("done", ctypes.c_int64),  # documents so far
    )


@dataclass(frozen=True)
class EncodingPlan:
    """What every worker is told."""

    functions: Path
    artifacts: Path
    prefix: str  # of the artifacts in the store
    task: PrepareTask
    label_names: tuple[str, ...]
    batch: int
    parallel_tokenizer: bool
    only_for: str | None = None  # the one model to encode for; None: all of the task's

    @property
    def sign(self) -> bool:
        """Whether documents are compared for near-duplicates."""
        return self.task.near_duplicate_threshold < 1

    @property
    def contexts(self) -> tuple[Context, ...]:
        """What the experimenter's functions are told, by model."""
        names, labels = self.task.model_names, self.label_names
        own, by_model = self.task.own_hyperparameters, self.task.model_hyperparameters
        wanted = names if self.only_for is None else (self.only_for,)
        return tuple(Context.of(name, names, labels, {**own, **by_model.get(name, {})}) for name in wanted)

    def read(self, batch: Mapping[str, Sequence[Any]]) -> list[InputDocument]:
        """Documents out of a batch of `Documents.to_table`."""
        return read_batch(batch, self.task, self.artifacts, self.prefix)


@dataclass(frozen=True)
class WorkerFiles:
    """A worker's number, and the files in which it says how it ended."""

    index: int
    folder: Path

    @property
    def end(self) -> Path:
        """Why it failed."""
        return self.folder / f"end-{self.index:05d}.json"

    @property
    def stack(self) -> Path:
        """Where it dumps its stack when asked."""
        return self.folder / f"stack-{self.index:05d}.txt"


@dataclass(frozen=True)
class Encoding:
    """What all workers have in common: the plan, the parts to take, and what they share beside files."""

    plan: EncodingPlan
    parts: Sequence[Part]
    states: Any  # WorkerState[workers]
    taken: Any  # how many parts the workers have taken so far
    mode: Any  # of the first process: LOADING, FORKED or ALONE
    open_end: Any  # of a pipe, which closes with the last process

    def take(self) -> Part | None:
        """The next part that no worker has taken."""
        with self.taken.get_lock():
            self.taken.value += 1
            index = int(self.taken.value) - 1
        return self.parts[index] if index < len(self.parts) else None


def run_first_worker(encoding: Encoding, workers: Sequence[WorkerFiles]) -> None:
    """Entry point of the first process."""
    atexit.register(gc.freeze)  # it ends while others wait: without unloading libraries object by object
    first = workers[0]
    with _as_worker(encoding, first):
        files = open_files()
        functions = _load(encoding, first)
        forkable = len(workers) > 1 and can_fork(files)
        if forkable:
            _warm_up(encoding, first, functions)
            forkable = can_fork(files)
        if forkable:
            encoding.mode.value = FORKED
            _fork(encoding, workers, functions)
        else:
            encoding.mode.value = ALONE
            _encode_parts(encoding, first, functions)


def run_worker(encoding: Encoding, worker: WorkerFiles, functions: UserFunctions | None = None) -> None:
    """Entry point of the other workers. `functions`: of the process that it was forked from; otherwise it loads its own."""
    with _as_worker(encoding, worker):
        _encode_parts(encoding, worker, functions or _load(encoding, worker))


@contextmanager
def _as_worker(encoding: Encoding, worker: WorkerFiles) -> Iterator[None]:
    """End with the process that waits; dump the stack on SIGUSR1; leave an error in the worker's file, and exit with 1."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if sys.platform == "linux":  # have the kernel send SIGKILL when the parent is gone, however it went
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _check_parent()
    encoding.states[worker.index].pid = os.getpid()
    with worker.stack.open("w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
        try:
            yield
        except BaseException as error:  # a sys.exit() of the experimenter's as well
            if not isinstance(error, TrainerError):
                traceback.print_exc()
            message = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
            write_atomically(worker.end, json.dumps({"error": type(error).__name__, "message": message}).encode())
            leave_threads(1)
            sys.exit(1)
        finally:
            faulthandler.unregister(signal.SIGUSR1)
    leave_threads(0)


def _check_parent() -> None:
    """End with the process that waits, where the kernel has not done so."""
    parent = parent_process()
    if parent and parent.pid != os.getppid():
        os._exit(1)  # nobody waits any more


def _load(encoding: Encoding, worker: WorkerFiles) -> UserFunctions:
    """The experimenter's module, and everything else that encoding needs."""
    plan, state = encoding.plan, encoding.states[worker.index]
    state.loading, state.started = True, time.monotonic()
    functions = UserFunctions.load(plan.functions)
    state.loading, state.started = False, 0

    import datasets

    import docml_trainer.preparation.encoder  # noqa: F401

    if plan.sign:
        import datasketch  # noqa: F401
    datasets.disable_caching()
    datasets.disable_progress_bars()
    return functions


def _warm_up(encoding: Encoding, worker: WorkerFiles, functions: UserFunctions) -> None:
    """Encode one document and drop the result: what the experimenter loads at first use, a tokenizer say, is then there in all forks."""
    first = encoding.parts[0].read_input().slice(0, 1)
    _encoder(encoding, worker, functions)(encoding.plan.read(first.to_pydict()))
    encoding.states[worker.index].started = 0


def _fork(encoding: Encoding, workers: Sequence[WorkerFiles], functions: UserFunctions) -> None:
    """Fork every worker. Return when all have ended, or as soon as one has failed, with its reason in its file."""
    context = get_context("fork")
    children = [
        context.Process(target=run_worker, args=(encoding, worker, functions), daemon=True) for worker in workers
    ]
    for child in children:
        child.start()
    running = list(zip(children, workers, strict=True))
    while running:
        wait([child.sentinel for child, _ in running])
        running = [(child, worker) for child, worker in running if child.exitcode is None]
        for child, worker in zip(children, workers, strict=True):
            if child.exitcode:
                if not worker.end.exists():
                    write_atomically(worker.end, json.dumps({"exit_code": child.exitcode}).encode())
                return


def _encode_parts(encoding: Encoding, worker: WorkerFiles, functions: UserFunctions) -> None:
    """Part after part into its files, until none is left."""
    import datasets

    plan, state = encoding.plan, encoding.states[worker.index]
    encoder = _encoder(encoding, worker, functions)

    def encode_batch(batch: dict[str, list[Any]]) -> "pa.Table":
        rows = encoder(plan.read(batch))
        state.started = 0
        state.done += len(batch["position"])
        return rows

    while part := encoding.take():
        encoder.tally = Tally()
        datasets.Dataset(part.read_input(), fingerprint="documents").map(
            encode_batch,
            batched=True,
            batch_size=plan.batch,
            writer_batch_size=plan.batch,
            features=datasets.Features.from_arrow_schema(encoder.schema),
            # A fingerprint sees the function and the paths, not what the files hold: nothing is ever taken from a cache.
            load_from_cache_file=False,
            cache_file_name=str(part.draft),
            new_fingerprint="rows",
        )
        part.finish(
            {
                "features": encoder.features.to_dict(),
                "near_duplicate_feature": encoder.near_duplicate_feature,
                "tally": encoder.tally.to_json(),
            }
        )


def _encoder(encoding: Encoding, worker: WorkerFiles, functions: UserFunctions) -> "Encoder":
    """An encoder that tells in shared memory what it is doing."""
    from docml_trainer.preparation.encoder import Encoder

    state = encoding.states[worker.index]

    def begin(first: int, count: int) -> None:
        _check_parent()
        state.first, state.count, state.started = first, count, time.monotonic()

    return Encoder(functions, encoding.plan.contexts, encoding.plan.sign, begin)
