import pytest
import torch

from docml_trainer.errors import TrainingError
from docml_trainer.machine import explained_out_of_memory, is_out_of_memory


def test_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_the_reason_names_the_remedy() -> None:
    with pytest.raises(TrainingError, match=r"out of memory: .*lower train_batch_size"), explained_out_of_memory():
        torch.empty(2**55)
    with pytest.raises(RuntimeError, match=r"^shape mismatch$"), explained_out_of_memory():
        raise RuntimeError("shape mismatch")
