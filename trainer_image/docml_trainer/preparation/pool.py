"""Encoding in several processes: watched, and never waited for in vain.

They tell in shared memory what they are at, so a document that takes too long is named, and so is the one at which a process was killed.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from docml_trainer.errors import DataError, TrainerError, UserCodeError
from docml_trainer.preparation.documents import Documents
from docml_trainer.preparation.worker import ALONE, FORKED, LOADING, Part, Plan, Seat, Shared, Slot, lead, work

BATCH = 64  # documents
PART = 1024  # documents that an encoder takes at a time: none idles for long while another is at its last ones
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 3.0
LOADING_SECONDS = 900.0  # for the experimenter's module, which may fetch a tokenizer
KILL_SECONDS = 10.0  # until a killed process is gone
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

    Raises UserCodeError or DataError as soon as one process does; no process outlives the call.
    """
    parts = _parts(positions, processes, folder)
    for part in parts:
        _write_input(documents, part)
    crew = _Crew(plan, parts, [Seat(index, folder) for index in range(min(processes, len(parts)))])
    try:
        crew.start()
        _load_meanwhile()
        _watch(crew, documents, stuck_seconds, lambda done: progress(done, len(positions)))
    finally:
        crew.end()
    return [json.loads(part.file("report").read_bytes()) for part in parts]


def _load_meanwhile() -> None:
    """The libraries that this process needs at the end take seconds to load, as do those of the encoders: both at once."""
    import datasketch  # noqa: F401

    import docml_trainer.preparation.rows  # noqa: F401


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


class _Crew:
    """The processes of one encoding: the first one, perhaps with forks of its own, and those started beside it."""

    def __init__(self, plan: Plan, parts: Sequence[Part], seats: Sequence[Seat]) -> None:
        self.plan, self.parts, self.seats = plan, parts, seats
        self._context = get_context("spawn")
        self._gone, self._held = self._context.Pipe(duplex=False)
        self.shared = Shared(
            slots=self._context.RawArray(Slot, len(seats)),
            taken=self._context.Value("q", 0),
            mode=self._context.RawValue("i", LOADING),
            held=self._held,
        )
        self.processes: list[BaseProcess] = []

    @property
    def slots(self) -> Sequence[Any]:
        """What the encoders are at, by seat."""
        slots: Sequence[Any] = self.shared.slots
        return slots

    def start(self) -> None:
        """The first process. It may fork, so it is no daemon in the sense of multiprocessing; it ends with this one all the same."""
        self._start(lead, self.plan, self.seats, self.parts, self.shared)

    def complete(self) -> None:
        """Start the others, once the first one is known to encode alone."""
        if self.shared.mode.value == ALONE and len(self.processes) == 1:
            for seat in self.seats[1:]:
                self._start(work, self.plan, seat, self.parts, self.shared)

    def end(self) -> None:
        """Return when no process is left: the kernel ends forks with the process that they were forked from."""
        for process in self.processes:
            process.kill()
            process.join()
        if not self._gone.closed:
            self._held.close()
            self._gone.poll(KILL_SECONDS)
            self._gone.close()

    def _start(self, entry: Callable[..., None], *arguments: Any) -> None:
        process = self._context.Process(target=entry, args=arguments)
        with _environment(self.plan.parallel_tokenizer):
            process.start()
        self.processes.append(process)


@contextmanager
def _environment(parallel: bool) -> Iterator[None]:
    """A tokenizer's own threads are for a lone encoder; several would only get into each other's way.

    Nor do other libraries start threads then, so that the first process can be forked: the numerical ones, and Arrow's allocator.
    """
    wanted = {"TOKENIZERS_PARALLELISM": "true" if parallel else "false"}
    if not parallel:
        wanted |= {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
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


def _watch(crew: _Crew, documents: Documents, stuck_seconds: float, progress: Callable[[int], None]) -> None:
    """Return when all processes have ended well; raise when one has not, or is stuck."""
    told = 0.0
    while True:
        crew.complete()
        running = [process for process in crew.processes if process.is_alive()]
        _raise_end(crew, documents)
        done = sum(slot.done for slot in crew.slots)
        if not running:
            _check_complete(crew)
            progress(done)
            return
        for seat, slot in zip(crew.seats, crew.slots, strict=True):
            limit = max(LOADING_SECONDS, stuck_seconds) if slot.loading else stuck_seconds
            if slot.started and time.monotonic() - slot.started > limit:
                _raise_stuck(crew, seat, documents, limit)
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            progress(done)
        wait([process.sentinel for process in running], timeout=POLL_SECONDS)


def _raise_end(crew: _Crew, documents: Documents) -> None:
    """If a process ended badly: with its reason, or without a word (killed)."""
    for seat, slot in zip(crew.seats, crew.slots, strict=True):
        if seat.end.exists():
            report = json.loads(seat.end.read_bytes())
            if "exit_code" in report:
                raise _killed(report["exit_code"], f"was at {_at(slot, documents)}")
            raise _ERRORS.get(report["error"], TrainerError)(report["message"])
    for process, slot in zip(crew.processes, crew.slots, strict=False):
        if process.exitcode:
            forked = crew.shared.mode.value == FORKED
            raise _killed(process.exitcode, "waited for the others" if forked else f"was at {_at(slot, documents)}")


def _killed(code: int, doing: str) -> DataError:
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    hint = " (out of memory? a larger instance or fewer PREPARATION_PROCESSES help)" if code == -signal.SIGKILL else ""
    return DataError(f"an encoding process {end}{hint} while it {doing}")


def _check_complete(crew: _Crew) -> None:
    missing = [part for part in crew.parts if not part.file("report").exists()]
    if missing:
        raise DataError(
            f"all encoding processes have ended, and {len(missing)} of {len(crew.parts)} parts of the documents are not encoded; "
            f"expected all of them (does {crew.plan.functions.name} end the process?)"
        )


def _raise_stuck(crew: _Crew, seat: Seat, documents: Documents, stuck_seconds: float) -> None:
    """Name the document that does not come back; in a batch it is found by encoding the documents one by one."""
    slot = crew.slots[seat.index]
    first, count = slot.first, 1 if slot.loading else slot.count
    where = _at(slot, documents)
    stack = _stack_of(seat, slot.pid)
    crew.end()
    if count > 1:
        alone = seat.folder / "alone"
        alone.mkdir()
        single = Plan(**{**vars(crew.plan), "batch": 1})
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
        f"{crew.plan.functions.name} has not returned within {stuck_seconds:g} s while it was at {where} "
        f"(if it takes that long on purpose, set DOCML_ENCODE_TIMEOUT_SECONDS). It was here:\n{stack}"
    )


def _at(slot: Any, documents: Documents) -> str:
    if slot.loading:
        return "loading the module"
    if not slot.started:
        return "no document"
    named = f"artifact {documents.guids[slot.first]} (label {documents.labels[slot.first]!r})"
    return named if slot.count == 1 else f"a batch of {slot.count} documents from {named}"


def _stack_of(seat: Seat, pid: int) -> str:
    """The encoder's Python stack, innermost call first."""
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + 2
    while not seat.stack.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    return "\n".join(seat.stack.read_text().splitlines()[:12]) or "(no stack)"
