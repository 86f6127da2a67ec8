"""The cases in which an exported model is compared with the trained one, and the comparison."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch

from docml_trainer.data.classifier import find_logits
from docml_trainer.data.collate import Collator
from docml_trainer.data.datasets import document_lengths, fetch, leaves, longest_axes
from docml_trainer.data.shapes import main_feature

# A long document takes seconds on a CPU, and each case is computed twice: so few documents, but of every kind.
BATCH_SIZES = (1, 2, 3)
VALIDATION_DOCUMENTS = 8
FIXED_DOCUMENTS = 12
SIZED_DOCUMENTS = 50
Row = dict[str, Any]


class PositionalModel(torch.nn.Module):
    """A model whose forward takes its inputs in order, and returns `{"logits": float[documents, labels]}`."""

    def __init__(self, model: torch.nn.Module, keys: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.keys = tuple(keys)

    def forward(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs in the order of `keys`."""
        logits = find_logits(self.model(**dict(zip(self.keys, inputs, strict=True))))
        assert logits is not None
        return {"logits": logits}


@dataclass(frozen=True)
class Case:
    """Inputs by name, as the collator makes them, and the eager model's logits where they are known already."""

    name: str
    inputs: Mapping[str, torch.Tensor]
    expected: torch.Tensor | None = None

    def ordered(self, keys: Sequence[str]) -> tuple[torch.Tensor, ...]:
        """The inputs as a trace takes them."""
        return tuple(self.inputs[key] for key in keys)


@dataclass(frozen=True)
class Parity:
    """Relative difference by case, and what is wrong with the first case that failed."""

    errors: dict[str, float]
    failure: str | None

    @property
    def worst(self) -> float:
        """The largest difference of all cases."""
        return max(self.errors.values(), default=0.0)


def compare(eager: PositionalModel, traced: torch.nn.Module, cases: Sequence[Case], tolerance: float) -> Parity:
    """Logits of both models in every case. Stops at the first case that differs by more than `tolerance`."""
    errors: dict[str, float] = {}
    for case in cases:
        inputs = case.ordered(eager.keys)
        expected = eager(*inputs)["logits"] if case.expected is None else case.expected
        try:
            found = traced(*inputs)["logits"]
        except RuntimeError as error:  # whatever TorchScript raises
            last = [line for line in str(error).splitlines() if line.strip()][-1]
            return Parity(errors, f"case '{case.name}': it raises {last.strip()}")
        if found.shape != expected.shape:
            return Parity(errors, f"case '{case.name}': logits {list(found.shape)}, expected {list(expected.shape)}")
        scale = max(1.0, float(expected.abs().max()))
        errors[case.name] = float((found - expected).abs().max()) / scale
        if not errors[case.name] <= tolerance:  # also when it is not a number
            return Parity(errors, f"case '{case.name}': a logit differs by {errors[case.name]:.2g}")
    return Parity(errors, None)


class Samples:
    """Real documents to compare with: the shortest, middle and longest for training, and some for validation."""

    def __init__(
        self,
        collator: Callable[..., Collator],
        train: datasets.Dataset,
        valid: datasets.Dataset,
        max_length: int | None = None,
    ) -> None:
        self.collator = collator  # called with nothing, or with `fixed_shape`
        self.collate = collator()
        self.train, self.valid = train, valid
        self.max_length = max_length  # as long as documents may become, where the experimenter says so
        self.lengths = document_lengths(train, self.collate.prefix)
        self.order = np.argsort(self.lengths, kind="stable")
        self.documents = self._three_documents()

    def trace_example(self, fixed_shape: Mapping[str, Sequence[int]] | None = None) -> Case:
        """What a trace is made at: two documents, one of them padded; or one, padded to the fixed shape."""
        if fixed_shape is not None:
            return Case("trace", self._fixed(fixed_shape)([self.documents[1]]))
        return Case("trace", self.collate([self.documents[1], self.documents[2]]))

    def dynamic_cases(self, eager: PositionalModel) -> list[Case]:
        """Batch sizes × lengths × padding, and batches of validation documents. Made-up documents that the model refuses are left out."""
        cases = []
        for row in self.documents:
            length = self._length(row)
            for size in BATCH_SIZES:
                cases.append(Case(f"batch {size} × length {length}, no padding", self.collate([row] * size)))
            for size in BATCH_SIZES[1:]:
                longest = [self.documents[2], *self.documents[:2], row, row]
                others = [document for document in longest if document is not row][: size - 1]
                rows = [row, *others, *[row] * (size - 1 - len(others))]
                cases.append(Case(f"batch {size} × length {length}, padded with others", self.collate(rows)))
        computed = [(case, _logits(eager, case)) for case in cases]
        accepted = [replace(case, expected=logits) for case, logits in computed if logits is not None]
        return [*accepted, *self._validation_cases()]

    def independence_cases(self, eager: PositionalModel) -> list[Case]:
        """A short, a middle and a long document in one batch, in two orders; expected is what the model says about each alone."""
        computed = [(row, _logits(eager, Case("alone", self.collate([row])))) for row in self.documents]
        rows, alone = zip(*((row, logits) for row, logits in computed if logits is not None), strict=True)
        expected = torch.cat(alone)
        return [
            Case("alone equals padded in a batch", self.collate(rows), expected),
            Case("in any batch order", self.collate(rows[::-1]), expected.flip(0)),
        ]

    def fixed_cases(self, fixed_shape: Mapping[str, Sequence[int]]) -> list[Case]:
        """Short to long documents, all padded to the one shape; training's and validation's."""
        collate = self._fixed(fixed_shape)
        cases = []
        for name, data in (("training", self.train), ("validation", self.valid)):
            order = np.argsort(document_lengths(data, self.collate.prefix), kind="stable")
            chosen = order[np.linspace(0, len(order) - 1, min(FIXED_DOCUMENTS, len(order))).round().astype(int)]
            for number, row in enumerate(fetch(data, chosen), start=1):
                cases.append(
                    Case(
                        f"{name} document {number} of length {self._length(row)}, padded to the one shape",
                        collate([row]),
                    )
                )
        return cases

    def fixed_shape(self, eager: PositionalModel) -> dict[str, list[int]]:
        """One document a batch, of max_length where the experimenter has it and the model takes it, else as long as the longest."""
        longest = self._longest()
        main = main_feature(self.collate.shapes)
        own = longest[main][-1] if main else 0
        if self.max_length is not None and self.max_length > own:
            shape = {name: [1, *self._stretched(name, sizes, own, self.max_length)] for name, sizes in longest.items()}
            if _logits(eager, Case("as long as it takes", self._fixed(shape)([self._filled(shape)]))) is not None:
                return shape
        return {name: [1, *sizes] for name, sizes in longest.items()}

    def _stretched(self, name: str, sizes: list[int], own: int, limit: int) -> list[int]:
        """Token axes, which are as long as the longest document, at the limit instead."""
        axes = self.collate.shapes[name].axes
        return [limit if axis is None and size == own else size for axis, size in zip(axes, sizes, strict=True)]

    def _filled(self, shape: Mapping[str, Sequence[int]]) -> Row:
        """The longest document, repeated until it has no room left: padding would hide that there are too few positions."""
        row = dict(self.documents[2])
        for name, (_, *sizes) in shape.items():
            column = self.collate.prefix + name
            row[column] = np.resize(leaves(row[column]), sizes)
        return row

    def _longest(self) -> dict[str, list[int]]:
        """By feature, the greatest length of every axis over both splits."""
        result = {}
        for name, shape in self.collate.shapes.items():
            per_split = [
                longest_axes(data, self.collate.prefix + name, shape.axes) for data in (self.train, self.valid)
            ]
            result[name] = [max(pair) for pair in zip(*per_split, strict=True)]
        return result

    def _fixed(self, fixed_shape: Mapping[str, Sequence[int]]) -> Collator:
        return self.collator(fixed_shape=fixed_shape)

    def _validation_cases(self) -> list[Case]:
        rows = np.linspace(0, len(self.valid) - 1, min(VALIDATION_DOCUMENTS, len(self.valid))).round().astype(int)
        return [Case(f"{len(rows)} validation documents", self.collate(fetch(self.valid, rows)))] if len(rows) else []

    def _three_documents(self) -> list[Row]:
        """Documents of three lengths; cut from the longest where lengths hardly differ: documents to come may be shorter.

        Without tokens, or where a number of its own may say how long a document is (how many pages, say), none is cut: it would
        contradict itself.
        """
        short, middle, long = fetch(self.train, self.order[[0, len(self.order) // 2, -1]])
        lengths = [self._length(row) for row in (short, middle, long)]
        if len(set(lengths)) == 3 and lengths[0] <= lengths[2] / 2:
            return [short, middle, long]
        if not main_feature(self.collate.shapes) or not all(shape.rank for shape in self.collate.shapes.values()):
            return self._three_sizes()
        return [self._cut(long, 0.3), self._cut(long, 0.6), long]

    def _three_sizes(self) -> list[Row]:
        """The smallest, middle and largest out of some documents, by the numbers that all their features hold."""
        chosen = np.linspace(0, len(self.order) - 1, min(SIZED_DOCUMENTS, len(self.order))).round().astype(int)
        columns = [self.collate.prefix + name for name in self.collate.shapes]
        by_size = sorted(
            fetch(self.train, self.order[chosen]), key=lambda row: sum(leaves(row[column]).size for column in columns)
        )
        return [by_size[0], by_size[len(by_size) // 2], by_size[-1]]

    def _cut(self, row: Row, share: float) -> Row:
        """The beginning of a document: the same share of every feature that may be of any length."""
        cut = dict(row)
        for name, shape in self.collate.shapes.items():
            if shape.rank and shape.axes[0] is None:
                value = row[self.collate.prefix + name]
                cut[self.collate.prefix + name] = value[: max(1, math.ceil(len(value) * share))]
        return cut

    def _length(self, row: Row) -> int:
        name = main_feature(self.collate.shapes)
        return len(leaves(row[self.collate.prefix + name])) if name else 1


def _logits(eager: PositionalModel, case: Case) -> torch.Tensor | None:
    """What the model says, without gradients; None where it refuses the inputs."""
    try:
        with torch.no_grad():
            logits: torch.Tensor = eager(*case.ordered(eager.keys))["logits"]
    except (RuntimeError, IndexError, ValueError):
        return None
    return logits
