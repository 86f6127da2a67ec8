"""A loaded model: encoders, batcher, and what its answers say."""

import gc
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from docml_trainer.data.datasets import leaves
from docml_trainer.data.shapes import main_feature
from docml_trainer.errors import TrainerError
from docml_trainer.inference.model import DeploymentFolder, Floats, TorchScriptModel, softmax
from docml_trainer.inference.prediction import batches_by_length
from docml_trainer.preparation.pool import stuck_seconds
from docml_trainer.serving.documents import References, RequestError, SentDocument
from docml_trainer.serving.encoding import MAX_SECONDS, Encoders, Row

MAX_ENCODERS = 8


class Answers:
    """Encodes and predicts; made once, when the server starts."""

    def __init__(self, deployment: DeploymentFolder, heard: Callable[[int], None]) -> None:
        self.context = deployment.context
        self._accepts = deployment.accepts
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
        self._threads = ThreadPoolExecutor(self._encoders.count, thread_name_prefix="encoder")
        # What is loaded stays: looking through it for garbage again and again would hold up a request for a tenth of a second.
        gc.collect()
        gc.freeze()
        self.identity = {
            "experiment": self.context.experiment,
            "run": self.context.run,
            "model": self.context.model_name,
            "torchscript_sha256": deployment.model.torchscript_sha256,
        }

    def answer(self, document: SentDocument) -> "Future[Floats]":
        """A future of the document's probabilities; it fails with RequestError. It cannot be cancelled."""
        answer: Future[Floats] = Future()
        answer.set_running_or_notify_cancel()
        self._threads.submit(self._encode, document, time.monotonic() + MAX_SECONDS, answer)
        return answer

    def _encode(self, document: SentDocument, deadline: float, answer: "Future[Floats]") -> None:
        """From here the row goes to the model, and the probabilities to whoever waits: no thread waits for them."""
        try:
            row = self._encoders.encode(document, deadline)
        except BaseException as error:
            answer.set_exception(error)
        else:
            self._batcher.submit(row, answer)

    def content(self, probabilities: Floats) -> dict[str, Any]:
        """What is answered about a document."""
        best = int(probabilities.argmax())
        return {
            "label": self.context.labels[best],
            "probability": float(probabilities[best]),
            "probabilities": dict(zip(self.context.labels, probabilities.tolist(), strict=True)),
            "accepted": None
            if (accepted := self._accepts(probabilities.astype(np.float64))) is None
            else bool(accepted),
            **self.identity,
        }

    def close(self) -> None:
        """Answer what waits, then end all processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)  # one that hangs ends with its process, below
        self._batcher.close()
        self._encoders.close()


TAKEN_AT_ONCE = 256  # documents


@dataclass
class _Waiting:
    row: Row
    answer: "Future[Floats]"


class Batcher:
    """A thread that owns the model. `heard` learns how many documents shared a batch."""

    def __init__(self, model: TorchScriptModel, prefix: str, heard: Callable[[int], None]) -> None:
        self._model, self._heard = model, heard
        main = main_feature(model.collate.shapes)
        self._column = None if main is None else prefix + main
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, row: Row, answer: "Future[Floats]") -> None:
        """`answer` gets the probabilities float64[labels], or a RequestError."""
        self._waiting.put(_Waiting(row, answer))

    def close(self) -> None:
        """Answer what waits, then end."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            taken = [first]
            while len(taken) < TAKEN_AT_ONCE and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    self._waiting.put(None)
                    break
                taken.append(following)
            lengths = np.array([self._length(waiting.row) for waiting in taken], dtype=np.int64)
            for batch in batches_by_length(lengths, self._model.device.type, self._model.files.fixed_batch):
                self._answer([taken[index] for index in batch])

    def _length(self, row: Row) -> int:
        return 1 if self._column is None else int(leaves(row[self._column]).size)

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        """One batch; if it fails, document by document, so that only the one that is to blame goes without an answer."""
        self._heard(len(batch))
        try:
            answers = softmax(self._model([waiting.row for waiting in batch]))
        except Exception as error:
            if len(batch) > 1:
                for waiting in batch:
                    self._answer([waiting])
                return
            known = isinstance(error, TrainerError)
            sentence = str(error) if known else "the model fails at this document"
            batch[0].answer.set_exception(RequestError(422 if known else 500, sentence))
            return
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.answer.set_result(answer)
