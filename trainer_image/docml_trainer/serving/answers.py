"""A loaded model: encoders, batcher, and what its answers say."""

import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import datasets
import torch

from docml_trainer.inference.deployment import DeploymentFolder
from docml_trainer.inference.model import Floats, TorchScriptModel
from docml_trainer.preparation.pool import stuck_seconds
from docml_trainer.serving.batching import Batcher
from docml_trainer.serving.documents import References, SentDocument
from docml_trainer.serving.encoding import MAX_SECONDS, Encoders, Row

MAX_ENCODERS = 8


class Answers:
    """Encodes and predicts; made once, when the server starts."""

    def __init__(self, deployment: DeploymentFolder, heard: Callable[[int], None]) -> None:
        self.context = deployment.context
        self.references = References(os.environ)
        cores = len(os.sched_getaffinity(0))
        self._encoders = Encoders(deployment, max(1, min(MAX_ENCODERS, cores)), min(stuck_seconds(), MAX_SECONDS))
        try:
            features = datasets.Features.from_dict(self._encoders.start())
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model = TorchScriptModel(deployment.model, features, deployment.prefix, device)
        except BaseException:
            self._encoders.close()
            raise
        self._batcher = Batcher(model, deployment.prefix, heard)
        self.identity = {
            "experiment": self.context.experiment,
            "run": self.context.run,
            "model": self.context.model_name,
            "torchscript_sha256": deployment.model.torchscript_sha256,
        }

    def encode(self, document: SentDocument) -> Row:
        """The document's row. RequestError if there is none."""
        return self._encoders.encode(document)

    def submit(self, row: Row) -> "Future[Floats]":
        """A future of the row's probabilities."""
        return self._batcher.submit(row)

    def content(self, probabilities: Floats) -> dict[str, Any]:
        """What is answered about a document."""
        best = int(probabilities.argmax())
        return {
            "label": self.context.labels[best],
            "probability": float(probabilities[best]),
            "probabilities": dict(zip(self.context.labels, probabilities.tolist(), strict=True)),
            "accepted": None,
            **self.identity,
        }

    def close(self) -> None:
        """Answer what waits, then end all processes."""
        self._batcher.close()
        self._encoders.close()
