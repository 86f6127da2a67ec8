"""TorchScript: the trace, and the gate that compares it with the model."""
