"""The trained model as TorchScript, and the gate that proves it equal to the trained model.

torch.jit.trace records what happens to one example. A model that decides by its input's shape (Longformer bakes in the length it was traced
at) or by its values gives a trace that is silently wrong elsewhere. So the saved file is compared with the eager model in cases
that vary batch size, document length and padding (`parity`). Where the trace does not hold at other shapes, it is made anew
for one shape, to which inference pads, and has to hold there for short and long documents alike. Otherwise there is no export.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from docml_trainer.errors import ExportError
from docml_trainer.export.parity import Case, Parity, PositionalModel, Samples, compare

TOLERANCE = 1e-4  # largest difference of a logit, relative to the larger of 1 and the case's largest logit
OUTPUTS = "dict:logits"


@dataclass(frozen=True)
class ExportResult:
    """What the gate let through. `content` is export.json; `errors` the relative difference of each case; `speedup` what came of asking
    for one.
    """

    content: dict[str, Any]
    errors: dict[str, float]
    speedup: dict[str, Any] | None = None


def export(
    model: torch.nn.Module, keys: Sequence[str], samples: Samples, labels: Sequence[str], path: Path
) -> ExportResult:
    """Write the TorchScript file of `model` (bare, on the CPU, with its final weights) and pass the gate.

    keys: what ordered_input_keys returned. ExportError names the case in which the trace differs.
    """
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        model = model.float()
    eager = PositionalModel(model, keys).eval()
    independence = samples.independence_cases(eager)
    with torch.no_grad():
        own = compare(eager, eager, independence, TOLERANCE)
    if own.failure is not None:
        raise ExportError(
            f"the trained model's answer about a document depends on the others of its batch: {own.failure}. "
            "Usually padding affects the answer: use attention_mask in forward(), also in means over tokens, name "
            "it in ordered_input_keys, and pad with the value that the "
            "model was made with (PADDING)"
        )
    fixed_shape: dict[str, list[int]] | None = None
    parity = trace_and_compare(eager, samples.trace_example(), [*samples.dynamic_cases(eager), *independence], path)
    if parity.failure is not None:
        fixed_shape = samples.fixed_shape(eager)
        print(
            f"The trace is valid only for the shape it was made with ({parity.failure}); it is made again for "
            f"{fixed_shape}, to which inference will pad.",
            flush=True,
        )
        parity = trace_and_compare(eager, samples.trace_example(fixed_shape), samples.fixed_cases(fixed_shape), path)
    if parity.failure is not None:
        path.unlink(missing_ok=True)
        raise ExportError(
            f"the TorchScript model differs from the trained one, also at the one shape {fixed_shape}: {parity.failure}. "
            f"Expected a relative difference of at most {TOLERANCE} in every case. Usually forward() branches on "
            "the values of its inputs (if, while, .item()): express that with torch.where or a mask"
        )
    example = samples.trace_example(fixed_shape).inputs
    content = {
        "input_keys": list(keys),
        "input_dtypes": {key: str(example[key].dtype).removeprefix("torch.") for key in keys},
        "feature_names": list(samples.collate.feature_names),
        "labels": list(labels),
        "padding": dict(samples.collate.padding),
        "fixed_shape": fixed_shape,
        "outputs": OUTPUTS,
        "tolerance": TOLERANCE,
        "cases": list(parity.errors),
    }
    print(
        f"TorchScript equals the trained model in {len(parity.errors)} cases: largest difference {parity.worst:.1e}",
        flush=True,
    )
    return ExportResult(content, parity.errors)


def trace_and_compare(
    eager: PositionalModel,
    example: Case,
    cases: Sequence[Case],
    path: Path,
    traced: PositionalModel | None = None,
    tolerance: float = TOLERANCE,
) -> Parity:
    """Trace `traced` (the eager model itself, unless given) at `example`, save, load the file again, and compare it with the eager model in
    all cases.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # jit is deprecated; TracerWarnings are what the gate decides about
        try:
            module = torch.jit.trace(traced or eager, example.ordered(eager.keys), strict=False, check_trace=False)
            torch.jit.save(module, str(path))
        except Exception as error:  # whatever TorchScript and the model raise
            return Parity({}, f"torch.jit.trace raises {type(error).__name__}: {(str(error) or '-').splitlines()[0]}")
        return compare(eager, torch.jit.load(str(path)), cases, tolerance)
