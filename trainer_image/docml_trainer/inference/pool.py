"""All batches of a test split through one model: in this process, or in several, one thread each.

A matrix product of one document is too small to be shared between many cores; whole batches are not. So several processes with
a thread each outrun one process with many threads, where there is enough work to repay their start.
"""

import atexit
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError

import datasets
import numpy as np
import torch

from docml_trainer.data.datasets import Rows
from docml_trainer.errors import TrainerError
from docml_trainer.inference.model import Floats, ModelFiles, Predictor

START_SECONDS = 600  # for all processes to import torch and to load the model
WORTH_IT_SECONDS = 30.0  # of work for one process, below which starting others takes longer than it saves
Progress = Callable[[int], None]


@dataclass(frozen=True)
class MeasuredLogits:
    """logits: float32[documents, labels]. seconds: from the first batch to the last answer, models loaded."""

    logits: Floats
    seconds: float


def predict_here(predictor: Predictor, batches: list[Rows], progress: Progress) -> MeasuredLogits:
    """With all threads of this process."""
    started = time.perf_counter()
    return _collect(((rows, predictor(rows)) for rows in batches), predictor.files, batches, started, progress)


def predict_in_processes(
    pool: "Pool", files: ModelFiles, prefix: str, batches: list[Rows], progress: Progress
) -> MeasuredLogits:
    """With every process of the pool. TrainerError if one of them dies."""
    try:
        _load_everywhere(pool, files, prefix)
        started = time.perf_counter()
        futures = {pool.executor.submit(_predict, rows): rows for rows in batches}
        answers = ((futures[future], future.result()) for future in as_completed(futures))
        return _collect(answers, files, batches, started, progress)
    except BrokenProcessPool as error:
        raise TrainerError(
            f"one of {pool.processes} inference processes died while predicting with {files.name!r} (out of memory?); "
            "expected all of them to finish: take a machine with more memory"
        ) from error


def _load_everywhere(pool: "Pool", files: ModelFiles, prefix: str) -> None:
    loading = [pool.executor.submit(_load, files, prefix) for _ in range(pool.processes)]
    errors = [error for error in (future.exception() for future in loading) if error is not None]
    if errors:  # the others only say that they waited in vain
        raise next((error for error in errors if not isinstance(error, BrokenBarrierError)), errors[0])


def _collect(
    answers: Iterator[tuple[Rows, Floats]], files: ModelFiles, batches: list[Rows], started: float, progress: Progress
) -> MeasuredLogits:
    logits = np.full((sum(map(len, batches)), len(files.labels)), np.nan, dtype=np.float32)
    done = 0
    for rows, answer in answers:
        logits[rows] = answer
        done += len(rows)
        progress(done)
    return MeasuredLogits(logits, time.perf_counter() - started)


def processes_for(cores: int, seconds: float, model_bytes: int, asked: int | None) -> int:
    """How many processes are worth starting for `seconds` of work: 1, or one a core as far as memory allows.

    A process takes its copy of the model, activations, and about half a gigabyte for torch itself.
    """
    if asked is not None:
        return max(1, asked)
    if seconds < WORTH_IT_SECONDS:
        return 1
    return max(1, min(cores, int(0.8 * available_memory() / (600e6 + 2 * model_bytes))))


def available_memory() -> float:
    """Bytes that can be taken without swapping."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


@dataclass(frozen=True)
class Pool:
    """Processes that stay for all models of the run."""

    executor: ProcessPoolExecutor
    processes: int


@contextmanager
def open_pool(processes: int, test: Path) -> Iterator[Pool]:
    """Start processes over the data set in the folder `test`. They end with the block; at once, when it fails or is stopped."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    barrier = context.Barrier(processes)
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(test, barrier))
    try:
        yield Pool(executor, processes)
    except BaseException:  # SIGTERM as well
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


# What follows runs in the processes of the pool, and keeps its state in the process.
_test: Path
_barrier: Barrier
_predictor: Predictor | None = None


def _start(test: Path, barrier: Barrier) -> None:
    global _test, _barrier
    torch.set_num_threads(1)
    atexit.register(gc.freeze)  # as in __main__: whoever waits need not wait for torch to be unloaded
    _test, _barrier = test, barrier


def _load(files: ModelFiles, prefix: str) -> None:
    """Every process takes exactly one of these: it waits for the others before it takes another task."""
    global _predictor
    _predictor = None  # before the next model is loaded, not after
    try:
        _predictor = Predictor(files, datasets.load_from_disk(str(_test)), prefix, "cpu")
    except BaseException:
        _barrier.abort()
        raise
    _barrier.wait(START_SECONDS)


def _predict(rows: Rows) -> Floats:
    assert _predictor is not None
    return _predictor(rows)
