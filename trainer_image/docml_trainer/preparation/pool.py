"""Encoding in several processes: watched, and never waited for in vain.

They tell in shared memory what they are doing, so a document that takes too long is named, and so is the one at which a process was killed.
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
from typing import Any

from docml_contract.names import RAISE_INSTEAD, WITHOUT_A_WORD
from docml_trainer.errors import DataError, TrainerError, UserCodeError
from docml_trainer.preparation.documents import Documents
from docml_trainer.preparation.parts import KeptParts, Part, cut
from docml_trainer.preparation.worker import (
    ALONE,
    FORKED,
    LOADING,
    Encoding,
    EncodingPlan,
    WorkerFiles,
    WorkerState,
    run_first_worker,
    run_worker,
)

BATCH = 64  # documents
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 3.0
LOADING_SECONDS = 900.0  # for the experimenter's module, which may fetch a tokenizer
STUCK_VARIABLE = "DOCML_ENCODE_TIMEOUT_SECONDS"
STUCK_SECONDS = 300.0
KILL_SECONDS = 10.0  # until a killed process is gone
_ERRORS = {error.__name__: error for error in (UserCodeError, DataError)}


def stuck_seconds() -> float:
    """How long one call of encode_data or encode_batch may take before it counts as stuck."""
    return float(os.environ.get(STUCK_VARIABLE) or STUCK_SECONDS)


def encode(
    documents: Documents,
    positions: range,
    plan: EncodingPlan,
    kept: KeptParts,
    *,
    processes: int,
    stuck_seconds: float,
    progress: Callable[[int, int], None],
) -> list[Part]:
    """Encode `positions`, but for the parts that an earlier attempt has finished. Returns the parts in order: their rows and reports.

    Raises UserCodeError or DataError as soon as one process does; no process outlives the call.
    """
    finished = kept.find(positions)
    taken = sum(len(part.positions) for part in finished)
    if taken:
        print(f"{taken:,} of {len(positions):,} documents were encoded by an earlier attempt", flush=True)
    parts = cut(positions, finished, processes, kept)
    if parts:
        for part in parts:
            _write_input(documents, part)
        files = [WorkerFiles(index, kept.scratch) for index in range(min(processes, len(parts)))]
        workers = _Workers(plan, parts, files)
        try:
            workers.start()
            _load_meanwhile()
            _watch(workers, documents, stuck_seconds, lambda done: progress(taken + done, len(positions)))
        finally:
            workers.end()
    return sorted([*finished, *parts], key=lambda part: part.positions.start)


def _load_meanwhile() -> None:
    """The libraries that this process needs at the end take seconds to load, as do those of the encoders: both at once."""
    import datasketch  # noqa: F401

    import docml_trainer.preparation.rows  # noqa: F401


def _write_input(documents: Documents, part: Part) -> None:
    import pyarrow as pa

    table = documents.to_table(part.positions)
    with pa.OSFile(str(part.input), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


class _Workers:
    """The processes of one encoding: the first one, perhaps with forks of its own, and those started beside it."""

    def __init__(self, plan: EncodingPlan, parts: Sequence[Part], files: Sequence[WorkerFiles]) -> None:
        self.files = files
        self._context = get_context("spawn")
        self._end_of_all, self._open_end = self._context.Pipe(duplex=False)
        self.encoding = Encoding(
            plan=plan,
            parts=parts,
            states=self._context.RawArray(WorkerState, len(files)),
            taken=self._context.Value("q", 0),
            mode=self._context.RawValue("i", LOADING),
            open_end=self._open_end,
        )
        self.processes: list[BaseProcess] = []

    @property
    def states(self) -> Sequence[Any]:
        """What every worker is doing."""
        states: Sequence[Any] = self.encoding.states
        return states

    def start(self) -> None:
        """The first process. It may fork, so it is not a daemon in the sense of multiprocessing; it ends with this one all the same."""
        self._start(run_first_worker, self.encoding, self.files)

    def complete(self) -> None:
        """Start the others, once the first one is known to encode alone."""
        if self.encoding.mode.value == ALONE and len(self.processes) == 1:
            for files in self.files[1:]:
                self._start(run_worker, self.encoding, files)

    def end(self) -> None:
        """Return when no process is left: the kernel ends forks with the process that they were forked from."""
        for process in self.processes:
            process.kill()
            process.join()
        if not self._end_of_all.closed:
            self._open_end.close()
            self._end_of_all.poll(KILL_SECONDS)
            self._end_of_all.close()

    def _start(self, entry: Callable[..., None], *arguments: Any) -> None:
        process = self._context.Process(target=entry, args=arguments)
        with encoder_environment(self.encoding.plan.parallel_tokenizer):
            process.start()
        self.processes.append(process)


@contextmanager
def encoder_environment(parallel: bool) -> Iterator[None]:
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


def _watch(workers: _Workers, documents: Documents, stuck_seconds: float, progress: Callable[[int], None]) -> None:
    """Return when all processes have succeeded; raise when one has failed, or is stuck."""
    told = 0.0
    while True:
        workers.complete()
        running = [process for process in workers.processes if process.is_alive()]
        _raise_end(workers, documents)
        done = sum(state.done for state in workers.states)
        if not running:
            _check_complete(workers, documents)
            progress(done)
            return
        for files, state in zip(workers.files, workers.states, strict=True):
            limit = max(LOADING_SECONDS, stuck_seconds) if state.loading else stuck_seconds
            if state.started and time.monotonic() - state.started > limit:
                _raise_stuck(workers, files, documents, limit)
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            progress(done)
        wait([process.sentinel for process in running], timeout=POLL_SECONDS)


def _raise_end(workers: _Workers, documents: Documents) -> None:
    """Raise if a process failed: with its reason, or without one (killed)."""
    for files, state in zip(workers.files, workers.states, strict=True):
        if files.end.exists():
            report = json.loads(files.end.read_bytes())
            if "exit_code" in report:
                raise _killed(report["exit_code"], f"was at {_at(state, documents)}")
            raise _ERRORS.get(report["error"], TrainerError)(report["message"])
    for process, state in zip(workers.processes, workers.states, strict=False):
        if process.exitcode:
            forked = workers.encoding.mode.value == FORKED
            raise _killed(process.exitcode, "waited for the others" if forked else f"was at {_at(state, documents)}")


def _killed(code: int, doing: str) -> DataError:
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    hint = " (out of memory? a larger instance or fewer PREPARATION_PROCESSES help)" if code == -signal.SIGKILL else ""
    if code > 0:
        hint = f" ({WITHOUT_A_WORD})"
    return DataError(f"an encoding process {end}{hint} while it {doing}")


def _check_complete(workers: _Workers, documents: Documents) -> None:
    missing = [part for part in workers.encoding.parts if not part.report.exists()]
    if missing:
        at = "; ".join(
            f"one was at {_at(state, documents)}" for state in workers.states if state.started and not state.loading
        )
        raise DataError(
            f"all encoding processes have ended, and {len(missing)} of {len(workers.encoding.parts)} parts of the documents are not encoded; "
            f"expected all of them (does {workers.encoding.plan.functions.name} end the process?{at and f' {at.capitalize()}'}); {RAISE_INSTEAD}"
        )


def _raise_stuck(workers: _Workers, files: WorkerFiles, documents: Documents, stuck_seconds: float) -> None:
    """Name the document that does not come back; in a batch it is found by encoding the documents one by one."""
    state = workers.states[files.index]
    first, count = state.first, 1 if state.loading else state.count
    where = _at(state, documents)
    stack = _stack_of(files, state.pid)
    workers.end()
    if count > 1:
        alone = files.folder / "alone"
        alone.mkdir()
        single = EncodingPlan(**{**vars(workers.encoding.plan), "batch": 1})
        encode(
            documents,
            range(first, first + count),
            single,
            KeptParts.of_one_attempt(alone),
            processes=1,
            stuck_seconds=stuck_seconds,
            progress=lambda done, total: None,
        )
        where += "; one by one they did"
    raise UserCodeError(
        f"{workers.encoding.plan.functions.name} has not returned within {stuck_seconds:g} s while it was at {where} "
        f"(if it takes that long on purpose, set DOCML_ENCODE_TIMEOUT_SECONDS). It was here:\n{stack}"
    )


def _at(state: Any, documents: Documents) -> str:
    if state.loading:
        return "loading the module"
    if not state.started:
        return "what follows a document (were its files closed?)"
    named = f"artifact {documents.guids[state.first]} (label {documents.labels[state.first]!r})"
    return named if state.count == 1 else f"a batch of {state.count} documents from {named}"


def _stack_of(files: WorkerFiles, pid: int) -> str:
    """The encoder's Python stack, innermost call first."""
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + 2
    while not files.stack.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    return "\n".join(files.stack.read_text().splitlines()[:12]) or "(no stack)"
