"""One model and the whole test split: which documents share a batch, on what it runs, how long a document takes, every answer."""

import copy
import os
import time
from typing import Any

import datasets
import numpy as np
import torch

from docml_contract.log_lines import ProgressEvents
from docml_contract.names import TORCHSCRIPT
from docml_trainer.data.datasets import Rows, document_lengths
from docml_trainer.data.shapes import main_feature, model_shapes
from docml_trainer.inference.model import ModelFiles, Predictor, objection_to_gpu, softmax
from docml_trainer.inference.pool import MeasuredLogits, Pool, predict_here, predict_in_processes, processes_for

LATENCY_DOCUMENTS = 20
WARM_UP = 3  # TorchScript optimizes a graph while it runs for the first times
SECONDS_BETWEEN_LINES = 5.0
# Padded tokens and documents of a batch. On a CPU the activations of larger batches leave the caches: MiniLM answers 6 % slower
# with 2,048 tokens than with 512 to 1,024, a model a tenth of its size equally fast from 1,024 on. A GPU wants more.
BATCH_TOKENS = {"cpu": 1024, "cuda": 65_536}
BATCH_DOCUMENTS = {"cpu": 32, "cuda": 512}


class ModelResult:
    """One model's answers for the test split, in its order, and how long they took.

    probabilities: float64[documents, labels]. predictions: int64[documents], label ids. tokens: int64[documents], or None
    where the model has no tokens.
    """

    def __init__(
        self, model: ModelFiles, predicted: MeasuredLogits, tokens: Rows | None, timings: dict[str, Any]
    ) -> None:
        self.model, self.tokens, self.timings = model, tokens, timings
        self.probabilities = softmax(predicted.logits)
        self.predictions = predicted.logits.argmax(axis=1)  # the first of equals


class LoadedModel:
    """A model that has answered a few single documents: its latency is known, and so is the work ahead."""

    def __init__(self, model: ModelFiles, test: datasets.Dataset, prefix: str) -> None:
        self.model, self.test, self.prefix = model, test, prefix
        self.has_lengths = main_feature(model_shapes(test.features, prefix)) is not None
        self.lengths = document_lengths(test, prefix)
        self.predictor = on_best_device(model, test, prefix, sample_rows(self.lengths, LATENCY_DOCUMENTS))
        self.latencies = self._measure()

    def over(self, data: datasets.Dataset) -> "LoadedModel":
        """The same model on other documents with the same features."""
        other = copy.copy(self)
        other.test, other.lengths = data, document_lengths(data, self.prefix)
        other.predictor = self.predictor.over(data)
        return other

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return self.predictor.device.type

    def processes(self, asked: int | None) -> int:
        """How many processes to predict with; `asked`: what the spec says, None where it leaves the choice."""
        if self.device != "cpu":
            return 1
        size = (self.model.folder / TORCHSCRIPT).stat().st_size
        seconds = float(np.mean(self.latencies)) * len(self.test)
        return processes_for(len(os.sched_getaffinity(0)), seconds, size, asked)

    def predict(self, workers: Pool | None) -> ModelResult:
        """In this process, or with the workers."""
        batches = batches_by_length(self.lengths, self.device, self.model.fixed_batch)
        events = ProgressEvents(
            f"{self.model.name} predicts", len(self.test), "documents", seconds_between=SECONDS_BETWEEN_LINES
        )

        def progress(done: int) -> None:
            if done == len(self.test) or events.is_due():
                events.print(done)

        if workers is None:
            predicted = predict_here(self.predictor, batches, progress)
        else:
            del self.predictor.model.module  # this process only hands out work
            predicted = predict_in_processes(workers, self.model, self.prefix, batches, progress)
        rate = len(self.test) / predicted.seconds
        latency = float(np.median(self.latencies)) * 1000
        where = f"{workers.processes} processes" if workers else self.device
        print(
            f"{self.model.name}: {rate:,.1f} documents a second ({where}), {latency:.1f} ms for a single one",
            flush=True,
        )
        timings = {
            "docs_per_second": rate,
            "latency_ms": latency,
            "latency_documents": len(self.latencies),
            "seconds": predicted.seconds,
            "batches": len(batches),
            "device": self.device,
            "processes": workers.processes if workers else 1,
            "threads": 1 if workers else torch.get_num_threads(),
            "torchscript_sha256": self.model.torchscript_sha256,
            "export_sha256": self.model.export_sha256,
        }
        return ModelResult(self.model, predicted, self.lengths if self.has_lengths else None, timings)

    def _measure(self) -> list[float]:
        """Seconds for each of a few documents alone, from its row to its logits."""
        rows = sample_rows(self.lengths, LATENCY_DOCUMENTS)
        for row in rows[:WARM_UP]:
            self.predictor(row.reshape(1))
        seconds = []
        for row in rows:
            started = time.perf_counter()
            self.predictor(row.reshape(1))
            seconds.append(time.perf_counter() - started)
        return seconds


def on_best_device(model: ModelFiles, test: datasets.Dataset, prefix: str, rows: Rows) -> Predictor:
    """The model on the GPU, where there is one and it answers as on the CPU; else on the CPU."""
    on_cpu = Predictor(model, test, prefix, "cpu")
    if not torch.cuda.is_available():
        return on_cpu
    few = rows[: model.fixed_batch or 4]
    on_gpu = Predictor(model, test, prefix, "cuda")
    objection = objection_to_gpu(model, lambda: on_gpu(few), on_cpu(few))
    if objection is None:
        return on_gpu
    print(objection, flush=True)
    return on_cpu


def batches_by_length(lengths: Rows, device: str, fixed_batch: int | None = None) -> list[Rows]:
    """Row numbers by batch, the longest documents first: what does not fit into memory fails at once, and the last batches
    are the small ones that let several processes end together.

    lengths: int64[documents]. fixed_batch: the one batch size of an export that holds at one shape only.
    """
    order = np.argsort(-lengths, kind="stable")
    if fixed_batch is not None:
        return [order[start : start + fixed_batch] for start in range(0, len(order), fixed_batch)]
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        size = max(1, min(BATCH_DOCUMENTS[device], BATCH_TOKENS[device] // longest))
        batches.append(order[start : start + size])
        start += size
    return batches


def sample_rows(lengths: Rows, count: int, seed: int = 0) -> Rows:
    """Up to `count` rows, drawn at random: the documents whose latency is measured."""
    return np.sort(np.random.default_rng(seed).permutation(len(lengths))[:count])
