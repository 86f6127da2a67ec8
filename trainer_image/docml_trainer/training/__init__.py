"""The parts of a training: loop, checkpoints, history, tracking."""
