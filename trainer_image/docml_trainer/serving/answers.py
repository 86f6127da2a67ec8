"""A loaded model: encoders, batcher, and what its answers say."""

import asyncio
import gc
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from docml_contract.base import UseCaseError
from docml_contract.use_cases import UseCaseWorker
from docml_trainer.data.datasets import leaves
from docml_trainer.data.shapes import main_feature
from docml_trainer.errors import TrainerError
from docml_trainer.inference.model import CheckedModel, DeploymentFolder, Floats, TorchScriptModel, softmax
from docml_trainer.inference.prediction import BATCH_DOCUMENTS, BATCH_TOKENS
from docml_trainer.preparation.pool import stuck_seconds
from docml_trainer.serving.documents import References, RequestError, SentDocument
from docml_trainer.serving.encoding import MAX_SECONDS, Encoders, Row

MAX_ENCODERS = 8
# What a call costs beside its tokens, in tokens: with one core 0.3 ms and 7 µs a token for two layers of 128, 6 ms and 0.13 ms for MiniLM.
# A GPU takes milliseconds to be told what to do, in which it computes thousands of tokens.
CALL_TOKENS = {"cpu": 40, "cuda": 4096}


class Answers:
    """Encodes and predicts; made once, when the server starts."""

    def __init__(self, deployment: DeploymentFolder, heard: Callable[[int], None], warn: Callable[[str], None]) -> None:
        """`heard` learns how many documents shared a batch, `warn` what an operator should know."""
        self.context = deployment.context
        self._accepts = deployment.accepts
        self.references = References(os.environ)
        cores = len(os.sched_getaffinity(0))
        seconds = min(stuck_seconds(), MAX_SECONDS)
        self._encoders = Encoders(deployment, max(1, min(MAX_ENCODERS, cores)), seconds)
        try:
            features = datasets.Features.from_dict(self._encoders.start())
            model = load_model(deployment, features, warn)
        except BaseException:
            asyncio.run(self._encoders.close())
            raise
        self.has_units, self._calls = deployment.has_units, asyncio.Lock()
        code = deployment.use_case
        self._use_case: UseCaseWorker | None = None
        if code is not None:
            scratch = Path(tempfile.mkdtemp(prefix="docml-serve-"))
            self._use_case = UseCaseWorker(code, os.environ, scratch, seconds)
        self._batcher = Batcher(model, deployment.prefix, heard, warn)
        # What is loaded stays: looking through it for garbage again and again would hold up a request for a tenth of a second.
        gc.collect()
        gc.freeze()
        self.identity = {
            "experiment": self.context.experiment,
            "run": self.context.run,
            "model": self.context.model_name,
            "torchscript_sha256": deployment.model.torchscript_sha256,
        }

    async def answer(self, document: SentDocument) -> dict[str, Any]:
        """What is answered about a document. RequestError if there is no answer."""
        if self._use_case is None:
            return self._content(await self._batcher.predict(await self._encoders.encode(document)))
        return await self._answer_by_use_case(document, self._use_case)

    async def _answer_by_use_case(self, document: SentDocument, use_case: UseCaseWorker) -> dict[str, Any]:
        artifact, names = {"artifact_guid": document.guid}, sorted(document.files)
        (chosen,) = await self._in_use_case(use_case.files, [(artifact, names)])
        document = replace(document, files={name: document.files[name] for name in chosen})
        if not self.has_units:
            return self._content(await self._batcher.predict(await self._encoders.encode(document)))
        rows = await self._encoders.encode_units(document)
        found = dict(zip(rows, await asyncio.gather(*map(self._predict_unit, rows.values())), strict=True))
        known = {unit: answer for unit, answer in found.items() if not isinstance(answer, RequestError)}
        refused = {unit: answer for unit, answer in found.items() if isinstance(answer, RequestError)}
        if not known:
            unit, reason = next(iter(refused.items()))
            raise RequestError(422, f"{unit}: {reason}")
        units = {document.guid: {unit: list(map(float, answer)) for unit, answer in known.items()}}
        combined = await self._in_use_case(use_case.combine, self.context.labels, units)
        details: list[dict[str, Any]] = [
            {"unit": unit, **self._said(known[unit])} if unit in known else {"unit": unit, "error": str(refused[unit])}
            for unit in rows
        ]
        return {**self._content(np.asarray(combined[document.guid], dtype=np.float32)), "units": details}

    async def _predict_unit(self, row: Row | RequestError) -> Floats | RequestError:
        """The unit's probabilities, or why it has none. RequestError where that is not the unit's fault."""
        if isinstance(row, RequestError):
            return row
        try:
            return await self._batcher.predict(row)
        except RequestError as error:
            if error.status != 422:
                raise
            return error

    async def _in_use_case(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of the use case answers, one call at a time. RequestError if it does not."""
        async with self._calls:
            try:
                return await asyncio.to_thread(function, *arguments)
            except UseCaseError as error:
                raise RequestError(422, str(error).splitlines()[0]) from None

    def _said(self, probabilities: Floats) -> dict[str, Any]:
        best = int(probabilities.argmax())
        return {
            "label": self.context.labels[best],
            "probability": float(probabilities[best]),
            "probabilities": dict(zip(self.context.labels, probabilities.tolist(), strict=True)),
        }

    def _content(self, probabilities: Floats) -> dict[str, Any]:
        accepted = self._accepts(probabilities.astype(np.float64))
        return {
            **self._said(probabilities),
            "accepted": None if accepted is None else bool(accepted),
            **self.identity,
        }

    async def close(self) -> None:
        """Answer what waits, then end all processes."""
        await asyncio.to_thread(self._batcher.close)
        await self._encoders.close()
        if self._use_case is not None:
            await asyncio.to_thread(self._use_case.close)


def load_model(
    deployment: DeploymentFolder, features: datasets.Features, warn: Callable[[str], None]
) -> TorchScriptModel | CheckedModel:
    """On the GPU, if there is one and the first documents do not object to it."""
    on_cpu = TorchScriptModel(deployment.model, features, deployment.prefix, "cpu")
    if not torch.cuda.is_available():
        return on_cpu
    on_gpu = TorchScriptModel(deployment.model, features, deployment.prefix, "cuda")
    return CheckedModel(on_gpu, on_cpu, warn)


@dataclass
class _Waiting:
    row: Row
    length: int
    answer: "asyncio.Future[Floats]"


class Batcher:
    """Threads that share a model: each takes the document that waits longest, and others of about its length.

    A call that is alone has all cores; several share them, since whole batches are shared between cores better than a matrix product
    is. It is the first thread that makes the lone calls: the threads that OpenMP starts for it then wait for each other without sleeping,
    which they give up where there are more of them than cores. `heard` learns how many documents shared a batch, `warn` of documents
    on which the model failed.
    """

    def __init__(
        self,
        model: TorchScriptModel | CheckedModel,
        prefix: str,
        heard: Callable[[int], None],
        warn: Callable[[str], None],
    ) -> None:
        self._model, self._heard, self._warn = model, heard, warn
        main = main_feature(model.collate.shapes)
        self._column = None if main is None else prefix + main
        self._cores = torch.get_num_threads()
        self._waiting: list[_Waiting] = []
        self._busy = 0
        self._closed = False
        self._lock = threading.Lock()
        self._first, self._others = threading.Condition(self._lock), threading.Condition(self._lock)
        count = self._cores if model.device.type == "cpu" else 1
        self._threads = [
            threading.Thread(target=self._work, args=(number == 0,), name="model", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    async def predict(self, row: Row) -> Floats:
        """Probabilities float64[labels]. RequestError if the model does not take the document."""
        length = 1 if self._column is None else int(leaves(row[self._column]).size)
        answer: asyncio.Future[Floats] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.append(_Waiting(row, length, answer))
            self._first.notify()
            if self._busy:
                self._others.notify()
        return await answer

    def close(self) -> None:
        """Answer what waits, then end."""
        with self._lock:
            self._closed = True
            self._first.notify()
            self._others.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, is_first: bool) -> None:
        while batch := self._take(is_first):
            try:
                self._answer(batch)
            finally:
                with self._lock:
                    self._busy -= 1
                    if self._waiting and not self._busy:
                        self._first.notify()

    def _take(self, is_first: bool) -> list[_Waiting]:
        """The next batch; empty when there is none any more."""
        with self._lock:
            if is_first:
                self._first.wait_for(lambda: self._waiting or self._closed)
            else:
                self._others.wait_for(lambda: (self._waiting and self._busy) or self._closed)
            if not self._waiting:
                return []
            lengths = [waiting.length for waiting in self._waiting]
            chosen = choose_batch(lengths, self._model.device.type, self._model.files.fixed_batch)
            batch = [self._waiting[index] for index in chosen]
            self._waiting = [waiting for index, waiting in enumerate(self._waiting) if index not in chosen]
            self._busy += 1
            if self._waiting:
                self._others.notify()
            if len(self._threads) > 1:
                torch.set_num_threads(max(1, self._cores // (self._busy + bool(self._waiting))))
            return batch

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        """One batch; if it fails, document by document, so that only the one that is to blame goes without an answer."""
        self._heard(len(batch))
        loop = batch[0].answer.get_loop()
        try:
            answers = softmax(self._model([waiting.row for waiting in batch]))
        except Exception as error:
            if len(batch) > 1:
                for waiting in batch:
                    self._answer([waiting])
                return
            known = isinstance(error, TrainerError)
            if not known:  # its message may hold something of the document
                self._warn(f"the model failed on a document with {type(error).__name__}")
            refusal = RequestError(422 if known else 500, str(error) if known else "the model failed on this document")
            loop.call_soon_threadsafe(_deliver, batch, [refusal])
        else:
            loop.call_soon_threadsafe(_deliver, batch, answers)


def _deliver(batch: Sequence[_Waiting], answers: Iterable[Floats | RequestError]) -> None:
    for waiting, answer in zip(batch, answers, strict=True):
        if waiting.answer.done():  # nobody waits any more
            continue
        if isinstance(answer, RequestError):
            waiting.answer.set_exception(answer)
        else:
            waiting.answer.set_result(answer)


def choose_batch(lengths: Sequence[int], device: str, fixed_batch: int | None) -> set[int]:
    """Which of the documents that wait go into the next batch: the first, and those of about its length.

    One is left for another batch where its company would pad more than a call of the model costs by itself.
    """
    order = np.argsort(lengths, kind="stable").tolist()
    first = order.index(0)
    last = first + 1
    while last - first < min(len(order), fixed_batch or BATCH_DOCUMENTS[device]):
        longest = lengths[order[last - 1]]
        candidates = [(longest - lengths[order[first - 1]], first - 1, last)] if first else []
        if last < len(order):
            candidates.append(((lengths[order[last]] - longest) * (last - first), first, last + 1))
        padding, lower, upper = min(candidates)
        too_many = lengths[order[upper - 1]] * (upper - lower) > BATCH_TOKENS[device]
        if fixed_batch is None and (too_many or padding > CALL_TOKENS[device]):
            break
        first, last = lower, upper
    return set(order[first:last])
