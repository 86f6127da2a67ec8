"""The processes that encode: each takes one part of the documents after the other, and maps it, in batches, into an Arrow stream.

The first one loads the experimenter's module and all libraries. Where it is safe, it then forks an encoder for every seat, so that what takes
seconds to load is loaded once; otherwise it encodes by itself, and whoever waits starts the others.

Memory does not grow with the number of documents. What an encoder is at stands in shared memory, for the process that waits.
"""

import ctypes
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docml_contract.jobs import PrepareTask
from docml_contract.manifests import write_atomically
from docml_trainer.errors import TrainerError
from docml_trainer.functions import Context, UserFunctions
from docml_trainer.preparation.outcomes import Document

if TYPE_CHECKING:
    import pyarrow as pa

    from docml_trainer.preparation.encoder import Encoder

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOADING, FORKED, ALONE = range(3)  # what the first process does


class Slot(ctypes.Structure):
    """In shared memory: what the encoder on a seat is at."""

    _fields_ = (
        ("pid", ctypes.c_int64),
        ("started", ctypes.c_double),  # monotonic seconds; 0: at nothing
        ("loading", ctypes.c_bool),  # the experimenter's module; otherwise at the documents:
        ("first", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("done", ctypes.c_int64),  # documents so far
    )


@dataclass(frozen=True)
class Plan:
    """What every encoder is told."""

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
    """Contiguous documents that one encoder takes: positions, and the files that it reads and writes."""

    index: int
    positions: range
    folder: Path

    def file(self, kind: str) -> Path:
        """`input` and `rows` are Arrow streams, `report` is JSON."""
        return self.folder / f"{kind}-{self.index:05d}.{'json' if kind == 'report' else 'arrow'}"

    def read_input(self) -> "pa.Table":
        """The documents, as `Documents.to_table` gives them."""
        import pyarrow as pa

        with pa.ipc.open_stream(self.file("input").read_bytes()) as reader:
            return reader.read_all()


@dataclass(frozen=True)
class Seat:
    """One encoder's place: its number, and the files in which it leaves its last words."""

    index: int
    folder: Path

    @property
    def end(self) -> Path:
        """Why it ended badly."""
        return self.folder / f"end-{self.index:05d}.json"

    @property
    def stack(self) -> Path:
        """Where it dumps its stack when asked."""
        return self.folder / f"stack-{self.index:05d}.txt"


@dataclass(frozen=True)
class Shared:
    """What the processes of one encoding have in common, beside files."""

    slots: Any  # Slot[seats]
    taken: Any  # how many parts have been taken by the encoders so far
    mode: Any  # of the first process: LOADING, FORKED or ALONE
    held: Any  # the end of a pipe that closes with the last process


def lead(plan: Plan, seats: Sequence[Seat], parts: Sequence[Part], shared: Shared) -> None:
    """Entry point of the first process."""
    with _seated(seats[0], shared):
        files = _open_files()
        functions = _load(plan, seats[0], shared)
        forkable = len(seats) > 1 and _can_fork(files)
        if forkable:
            _warm_up(plan, seats[0], parts[0], shared, functions)
            forkable = _can_fork(files)
        if forkable:
            shared.mode.value = FORKED
            _fork(plan, seats, parts, shared, functions)
        else:
            shared.mode.value = ALONE
            _encode_parts(plan, seats[0], parts, shared, functions)


def work(plan: Plan, seat: Seat, parts: Sequence[Part], shared: Shared, functions: UserFunctions | None = None) -> None:
    """Entry point of an encoder. `functions`: of the process that it was forked from; otherwise it loads its own."""
    with _seated(seat, shared):
        _encode_parts(plan, seat, parts, shared, functions or _load(plan, seat, shared))


@contextmanager
def _seated(seat: Seat, shared: Shared) -> Iterator[None]:
    """Ends with the process that waits; can be asked for its stack; an error becomes its last words and exit code 1."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _end_with_parent()
    shared.slots[seat.index].pid = os.getpid()
    with seat.stack.open("w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
        try:
            yield
        except BaseException as error:  # a sys.exit() of the experimenter's as well
            if not isinstance(error, TrainerError):
                traceback.print_exc()
            message = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
            write_atomically(seat.end, json.dumps({"error": type(error).__name__, "message": message}).encode())
            sys.exit(1)
        finally:
            faulthandler.unregister(signal.SIGUSR1)


def _end_with_parent() -> None:
    """Have the kernel send SIGKILL when the parent is gone, however it went. Elsewhere than on Linux, the encoder looks for it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _check_parent()


def _check_parent() -> None:
    parent = parent_process()
    if parent and parent.pid != os.getppid():
        os._exit(1)  # nobody waits any more


def _load(plan: Plan, seat: Seat, shared: Shared) -> UserFunctions:
    """The experimenter's module, and everything else that encoding needs."""
    slot = shared.slots[seat.index]
    slot.loading, slot.started = True, time.monotonic()
    functions = UserFunctions.load(plan.functions)
    slot.loading, slot.started = False, 0

    import datasets

    import docml_trainer.preparation.encoder  # noqa: F401

    if plan.sign:
        import datasketch  # noqa: F401
    datasets.disable_caching()
    datasets.disable_progress_bars()
    return functions


def _warm_up(plan: Plan, seat: Seat, part: Part, shared: Shared, functions: UserFunctions) -> None:
    """Encode a document once for nothing: what the experimenter loads at first use, a tokenizer say, is then there in all forks."""
    first = part.read_input().slice(0, 1)
    _encoder(plan, seat, shared, functions)(_documents(first.to_pydict(), plan))
    shared.slots[seat.index].started = 0


def _open_files() -> dict[str, str]:
    """This process' open files by descriptor; empty where the system does not tell."""
    found = {}
    for path in Path("/proc/self/fd").glob("*"):
        try:
            found[path.name] = str(path.readlink())
        except OSError:  # the one that lists the folder
            continue
    return found


def _can_fork(files_before: dict[str, str]) -> bool:
    """Whether forks of this process are as good as fresh ones: no other thread runs, and the module has left no file or connection open.

    A fork has none of the threads, and what they had locked stays locked; an open file's position, or a connection, would be shared.
    """
    threads = list(Path("/proc/self/task").glob("*"))
    return len(threads) == 1 and _open_files() == files_before


def _fork(plan: Plan, seats: Sequence[Seat], parts: Sequence[Part], shared: Shared, functions: UserFunctions) -> None:
    """An encoder for every seat. Return when all have ended, or as soon as one has ended badly, with its last words."""
    context = get_context("fork")
    children = [
        context.Process(target=work, args=(plan, seat, parts, shared, functions), daemon=True) for seat in seats
    ]
    for child in children:
        child.start()
    running = list(zip(children, seats, strict=True))
    while running:
        wait([child.sentinel for child, _ in running])
        running = [(child, seat) for child, seat in running if child.exitcode is None]
        for child, seat in zip(children, seats, strict=True):
            if child.exitcode:
                if not seat.end.exists():
                    write_atomically(seat.end, json.dumps({"exit_code": child.exitcode}).encode())
                return


def _encode_parts(plan: Plan, seat: Seat, parts: Sequence[Part], shared: Shared, functions: UserFunctions) -> None:
    slot = shared.slots[seat.index]

    def finished(count: int) -> None:
        slot.started = 0
        slot.done += count

    encoder = _encoder(plan, seat, shared, functions)
    while (index := _take(shared.taken)) < len(parts):
        _encode_part(plan, parts[index], encoder, finished)


def _encoder(plan: Plan, seat: Seat, shared: Shared, functions: UserFunctions) -> "Encoder":
    """One that tells in shared memory what it is at."""
    from docml_trainer.preparation.encoder import Encoder

    slot = shared.slots[seat.index]

    def begin(first: int, count: int) -> None:
        _check_parent()
        slot.first, slot.count, slot.started = first, count, time.monotonic()

    return Encoder(functions, plan.contexts, plan.sign, begin)


def _take(taken: Any) -> int:
    """The next part that no encoder has."""
    with taken.get_lock():
        taken.value += 1
        return int(taken.value) - 1


def _encode_part(plan: Plan, part: Part, encoder: "Encoder", finished: Callable[[int], None]) -> None:
    import datasets

    from docml_trainer.preparation.outcomes import Tally

    encoder.tally = Tally()

    def encode_batch(batch: dict[str, list[Any]]) -> "pa.Table":
        rows = encoder(_documents(batch, plan))
        finished(len(batch["position"]))
        return rows

    documents = datasets.Dataset(part.read_input(), fingerprint="documents")
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
