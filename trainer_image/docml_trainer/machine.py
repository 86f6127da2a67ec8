"""The machine that a job runs on: what it is, how much of its memory the job took, and running out of that memory."""

import os
import platform
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from docml_trainer.errors import TrainingError


def hardware() -> dict[str, Any]:
    """Processor, operating system, usable cores, memory (GB) and GPU (None without one), for model cards and timings."""
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_memory_mb() -> float:
    """The most this process has had: of the GPU's memory where there is one, else of the machine's (Linux counts KiB)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's own error, or the CPU allocator's, which is a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextmanager
def explained_out_of_memory() -> Iterator[None]:
    """Turn an out-of-memory error, of the GPU or the machine, into a TrainingError with the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory: {str(error).splitlines()[0] if str(error) else type(error).__name__} (lower train_batch_size and raise "
            "gradient_accumulation_steps by as much, which trains on the same documents a step; or set gradient_checkpointing, "
            "shorten documents in encode_data, or take a larger instance)"
        ) from error


EXIT_STOPPED = 128 + signal.SIGTERM  # 143: stopped, neither done nor failed


class StopSignal:
    """Outside `deferred()` there is nothing worth saving, and SIGTERM ends the process at once; inside it waits to be asked."""

    def __init__(self) -> None:
        self.requested = False
        self._deferring = False
        signal.signal(signal.SIGTERM, self._received)

    def _received(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferring:
            stop("before there was anything to save")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While the block runs, a signal is only noted, for the block to ask for."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False


def stop(where: str) -> None:
    """End the process as stopped."""
    print(f"Stopped by SIGTERM {where}.", flush=True)
    sys.exit(EXIT_STOPPED)
