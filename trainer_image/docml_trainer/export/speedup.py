"""The exported model in bfloat16, for CPUs that compute in it: a third of the time, and the gate that it has to pass.

The file takes the place of the one in float32 only where hardly a document of the validation split gets another label, the score stays,
and this machine's CPU is quicker with it. Its probabilities are rounded: an answer depends a little (some thousandths) on the documents that
share its batch, which is why nothing of this happens unless INFERENCE_SPEEDUP asks for it.

Two other candidates were measured (docs/benchmarks.md) and are not tried: integers of eight bits, whose range is chosen for a whole batch, so
that a document's answer depends on its company a hundred times as much; and float32 with casts in every call, slower than either.
"""

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from docml_contract.log_lines import ProgressEvents
from docml_trainer.data.datasets import Rows, document_lengths, evaluation_batches, fetch
from docml_trainer.data.shapes import LABELS
from docml_trainer.export.parity import PositionalModel, Samples
from docml_trainer.export.trace import ExportResult, trace_and_compare

BFLOAT16 = "bfloat16"
TOLERANCE = 0.05  # of a logit at any shape: a trace that holds at one shape only is off by more
LEAST_AGREEMENT = 0.999  # share of validation documents that keep their label
MOST_LOST = 0.001  # of macro-F1
LEAST_GAIN = 1.1  # times as fast
MOST_DOCUMENTS = 5000  # of the validation split, drawn at random
BATCH = 8
SECONDS_BETWEEN_LINES = 5.0
Score = Callable[[Rows, Rows], float]  # macro-F1 of predicted label ids, given the true ones


@dataclass(frozen=True)
class Comparison:
    """The two files on the same validation documents."""

    documents: int
    equal_labels: int
    float32_f1: float
    bfloat16_f1: float
    float32_seconds: float
    bfloat16_seconds: float

    @property
    def gain(self) -> float:
        """How many times as fast bfloat16 is."""
        return self.float32_seconds / self.bfloat16_seconds

    def objection(self) -> str | None:
        """Why bfloat16 is not worth having; None if it is."""
        if self.equal_labels < LEAST_AGREEMENT * self.documents:
            return f"{self.documents - self.equal_labels} of {self.documents} validation documents get another label"
        if self.float32_f1 - self.bfloat16_f1 > MOST_LOST:
            return f"macro-F1 on the validation split falls from {self.float32_f1:.4f} to {self.bfloat16_f1:.4f}"
        if self.gain < LEAST_GAIN:
            return f"it is {self.gain:.2f} times as fast here, and has to be {LEAST_GAIN}"
        return None


class InBfloat16(PositionalModel):
    """Takes and returns what the model does, and computes in bfloat16."""

    def forward(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs in the order of `keys`."""
        narrow = [value.bfloat16() if value.is_floating_point() else value for value in inputs]
        return {"logits": super().forward(*narrow)["logits"].float()}


def speed_up(
    exported: ExportResult, model: torch.nn.Module, samples: Samples, path: Path, score: Score
) -> ExportResult:
    """Put a faster file at `path` in place of the one that was exported there, if it passes; export.json's content then says so.

    model: bare, in float32, on the CPU. `speedup` of the result says what was found, either way.
    """
    keys = exported.content["input_keys"]
    if not computes_in_bfloat16():
        return _kept(exported, "this machine's CPU does not compute in bfloat16")
    fixed_shape = exported.content["fixed_shape"]
    eager = PositionalModel(model, keys).eval()
    fast = path.with_suffix(f".{BFLOAT16}")
    try:
        if fixed_shape:
            cases = samples.fixed_cases(fixed_shape)
        else:
            cases = [*samples.dynamic_cases(eager), *samples.independence_cases(eager)]
        narrow = InBfloat16(copy.deepcopy(model).bfloat16(), keys).eval()
        parity = trace_and_compare(eager, samples.trace_example(fixed_shape), cases, fast, narrow, TOLERANCE)
        if parity.failure is not None:
            return _kept(exported, parity.failure)
        compared = compare_files(path, fast, keys, samples, fixed_shape, score)
        if objection := compared.objection():
            return _kept(exported, objection, compared)
        fast.replace(path)
    finally:
        fast.unlink(missing_ok=True)
    print(
        f"INFERENCE_SPEEDUP: the TorchScript model computes in bfloat16, {compared.gain:.1f} times as fast here; {compared.equal_labels} of "
        f"{compared.documents} validation documents keep their label, macro-F1 {compared.float32_f1:.4f} -> {compared.bfloat16_f1:.4f}",
        flush=True,
    )
    content = exported.content | {"arithmetic": BFLOAT16, "tolerance": TOLERANCE}
    return ExportResult(content, parity.errors, {"used": BFLOAT16, **asdict(compared)})


def _kept(exported: ExportResult, reason: str, compared: Comparison | None = None) -> ExportResult:
    print(f"INFERENCE_SPEEDUP: the TorchScript model stays in float32: {reason}", flush=True)
    figures = {} if compared is None else asdict(compared)
    return ExportResult(exported.content, exported.errors, {"used": None, "reason": reason, **figures})


def computes_in_bfloat16() -> bool:
    """Whether the CPU has instructions for it; without them it is slower than float32."""
    capability = torch.backends.cpu.get_cpu_capability()
    return capability.startswith("AVX512") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def compare_files(
    plain: Path,
    fast: Path,
    keys: Sequence[str],
    samples: Samples,
    fixed_shape: dict[str, list[int]] | None,
    score: Score,
) -> Comparison:
    """Both files on validation documents of about one length a batch. They take turns, since a machine's speed drifts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is deprecated, and what production loads
        modules = [torch.jit.load(str(path)).eval() for path in (plain, fast)]
    collate = samples.collator(fixed_shape=fixed_shape) if fixed_shape else samples.collate
    chosen = np.sort(np.random.default_rng(0).permutation(len(samples.valid))[:MOST_DOCUMENTS])
    size = next(iter(fixed_shape.values()))[0] if fixed_shape else BATCH
    (batches,) = evaluation_batches(document_lengths(samples.valid, collate.prefix)[chosen], size, 1)
    events = ProgressEvents("comparing bfloat16", len(chosen), "documents", seconds_between=SECONDS_BETWEEN_LINES)
    seconds, said, truth = [0.0, 0.0], [list[Rows](), list[Rows]()], list[Rows]()
    with torch.inference_mode():
        for number, rows in enumerate(batches):
            batch = collate(fetch(samples.valid, chosen[rows]))
            inputs = [batch[key] for key in keys]
            for which in (0, 1) if number % 2 else (1, 0):
                if number < 2:
                    modules[which](*inputs)  # TorchScript and its kernels choose how to compute at first
                started = time.perf_counter()
                logits = modules[which](*inputs)["logits"]
                seconds[which] += time.perf_counter() - started
                said[which].append(logits[: len(rows)].argmax(dim=1).numpy())
            truth.append(batch[LABELS][: len(rows)].numpy())
            if events.is_due():
                events.print(sum(map(len, truth)))
    found, true = [np.concatenate(parts) for parts in said], np.concatenate(truth)
    return Comparison(
        documents=len(true),
        equal_labels=int((found[0] == found[1]).sum()),
        float32_f1=score(found[0], true),
        bfloat16_f1=score(found[1], true),
        float32_seconds=seconds[0],
        bfloat16_seconds=seconds[1],
    )
