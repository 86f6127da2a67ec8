"""Documents as tensors: columns, shapes, batches, and the model that takes them."""
