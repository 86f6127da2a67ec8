"""One process of several: runs the trainings named on the command line one after the other, to start the processes only once.

torchrun-like environment (RANK, WORLD_SIZE, …)   python -m tests.docml_trainer.trainings_together FOLDER …
"""

import sys
from pathlib import Path

import accelerate

from docml_trainer.container import Folders
from docml_trainer.train import train


def run_all(bases: list[Path]) -> None:
    accelerate.Accelerator.end_training = lambda self: None  # type: ignore[method-assign]  # the processes go on
    for base in bases:
        accelerate.state.AcceleratorState._reset_state()
        train(Folders(base, "train"))


if __name__ == "__main__":
    run_all([Path(argument) for argument in sys.argv[1:]])
