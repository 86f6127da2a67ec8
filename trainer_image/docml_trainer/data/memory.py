"""Running out of memory, of the GPU or the machine, is one of the job's own failures, with a remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from docml_trainer.errors import TrainingError


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
