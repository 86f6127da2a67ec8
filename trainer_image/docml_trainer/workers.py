"""Encoding in several processes: started fresh (spawned), watched, and never waited for in vain.

Workers tell in shared memory what they are at, so a document that takes too long is named, and so is the one at which a worker
was killed.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from docml_trainer.documents import Documents
from docml_trainer.errors import DataError, TrainerError, UserCodeError
from docml_trainer.worker import COUNT, DONE, FIRST, LOADING, SLOT, STARTED, Part, Plan, Seat, work

BATCH = 64  # documents
PART = 1024  # documents that a worker takes at a time: no worker idles for long while another is at its last ones
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 3.0
LOADING_SECONDS = 900.0  # for the experimenter's module, which may fetch a tokenizer
_ERRORS = {error.__name__: error for error in (UserCodeError, DataError)}


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
    """Encode `positions` into `folder`: `rows-*.arrow` in order. Returns the parts' reports (features, tally), in order.

    Raises UserCodeError or DataError as soon as one worker does; no process outlives the call.
    """
    parts = _parts(positions, processes, folder)
    context = get_context("spawn")
    seats = [Seat(index, folder) for index in range(min(processes, len(parts)))]
    slots = context.RawArray("d", SLOT * len(seats))
    taken = context.Value("q", 0)
    for part in parts:
        _write_input(documents, part)
    workers: list[BaseProcess] = [
        context.Process(
            target=work,
            args=(plan, seat, parts, taken, slots, os.getpid()),
            daemon=True,
            name=f"encoder-{seat.index}",
        )
        for seat in seats
    ]
    try:
        with _tokenizer_environment(plan.parallel_tokenizer):
            for worker in workers:
                worker.start()
        _load_meanwhile()
        _watch(workers, seats, slots, documents, plan, stuck_seconds, lambda done: progress(done, len(positions)))
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
    """At least one for each process, as far as there are documents."""
    count = max(1, min(processes, len(positions)), -(-len(positions) // PART))
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
    seats: Sequence[Seat],
    slots: Any,
    documents: Documents,
    plan: Plan,
    stuck_seconds: float,
    progress: Callable[[int], None],
) -> None:
    """Return when all workers have ended well; raise when one has not, or is stuck."""
    told = 0.0
    while True:
        alive = [worker.is_alive() for worker in workers]
        for worker, seat in zip(workers, seats, strict=True):
            if worker.exitcode not in (None, 0):
                _raise_end(worker, seat, slots, documents)
        done = sum(int(slots[seat.index * SLOT + DONE]) for seat in seats)
        if not any(alive):
            progress(done)
            return
        for worker, seat, running in zip(workers, seats, alive, strict=True):
            started, first = (slots[seat.index * SLOT + field] for field in (STARTED, FIRST))
            limit = max(LOADING_SECONDS, stuck_seconds) if first == LOADING else stuck_seconds
            if running and started and time.monotonic() - started > limit:
                _raise_stuck(worker, seat, slots, documents, plan, limit)
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            progress(done)
        time.sleep(POLL_SECONDS)


def _raise_end(worker: BaseProcess, seat: Seat, slots: Any, documents: Documents) -> None:
    """A worker ended badly: with its reason, or without a word (killed)."""
    if seat.error.exists():
        report = json.loads(seat.error.read_bytes())
        raise _ERRORS.get(report["error"], TrainerError)(report["message"])
    code = worker.exitcode or 0
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    hint = " (out of memory? a larger instance or fewer PREPARATION_PROCESSES help)" if code == -signal.SIGKILL else ""
    raise DataError(f"an encoding process {end}{hint} while it was at {_at(seat, slots, documents)}")


def _raise_stuck(
    worker: BaseProcess, seat: Seat, slots: Any, documents: Documents, plan: Plan, stuck_seconds: float
) -> None:
    """Name the document that does not come back; in a batch it is found by encoding the documents one by one."""
    first, count = int(slots[seat.index * SLOT + FIRST]), int(slots[seat.index * SLOT + COUNT])
    where = _at(seat, slots, documents)
    stack = _stack_of(worker, seat)
    worker.kill()
    if count > 1:
        alone = seat.folder / "alone"
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
        f"{plan.functions.name} has not returned within {stuck_seconds:g} s while it was at {where} "
        f"(if it takes that long on purpose, set DOCML_ENCODE_TIMEOUT_SECONDS). It was here:\n{stack}"
    )


def _at(seat: Seat, slots: Any, documents: Documents) -> str:
    first, count = slots[seat.index * SLOT + FIRST], int(slots[seat.index * SLOT + COUNT])
    if first == LOADING:
        return "loading the module"
    if not slots[seat.index * SLOT + STARTED]:
        return "no document"
    named = f"artifact {documents.guids[int(first)]} (label {documents.labels[int(first)]!r})"
    return named if count == 1 else f"a batch of {count} documents from {named}"


def _stack_of(worker: BaseProcess, seat: Seat) -> str:
    """The worker's Python stack, innermost call first."""
    if worker.pid is None or not seat.stack.exists():
        return "(no stack)"
    os.kill(worker.pid, signal.SIGUSR1)
    deadline = time.monotonic() + 2
    while not seat.stack.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    return "\n".join(seat.stack.read_text().splitlines()[:12])
