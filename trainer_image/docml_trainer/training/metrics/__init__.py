"""Metrics as `evaluate` modules that ship with the trainer: loading one from the Hub would need the network."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from docml_trainer.training.metrics.accuracy import Accuracy
from docml_trainer.training.metrics.macro_f1 import MacroF1


def scores(
    predictions: Sequence[int] | np.ndarray[Any, Any], references: Sequence[int] | np.ndarray[Any, Any]
) -> dict[str, float]:
    """`{"accuracy", "f1"}` of label ids against label ids; at least one document."""
    return {
        **Accuracy(keep_in_memory=True).compute(predictions=predictions, references=references),
        **MacroF1(keep_in_memory=True).compute(predictions=predictions, references=references),
    }
