"""Simulated models whose precision at every threshold is known, and the policies that are made for them.

`python -m tests.docml_assets.report.policies` simulates 2,000 policies for every size and accuracy, and prints how often the promise is broken.
"""

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from docml_assets.report.policy import choose_policy
from docml_contract.policy import confidences

SIZES = (200, 1_000, 5_000)
ACCURACIES = (0.7, 0.9, 0.97)
LABELS = 4
POPULATION = 50_000
MARGINS = {0.7: 1.492, 0.9: 2.451, 0.97: 3.227}  # of the right label's logit, by accuracy
OVERCONFIDENCE = 2.0
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SimulatedModel:
    """Answers with normal logits that are higher for the right label, and twice as sure as it should be."""

    margin: float

    def answer(self, documents: int, random: np.random.Generator) -> tuple[Floats, npt.NDArray[np.int64]]:
        """(probabilities float64[documents, labels], truth int64[documents])."""
        truth = random.integers(0, LABELS, documents)
        logits = random.standard_normal((documents, LABELS))
        logits[np.arange(documents), truth] += self.margin
        powers = np.exp(OVERCONFIDENCE * self.margin * (logits - logits.max(axis=1, keepdims=True)))
        return powers / powers.sum(axis=1, keepdims=True), truth


@dataclass(frozen=True)
class Tally:
    """What became of many policies."""

    policies: int
    holding: int
    violations: int  # hold, and their true precision is below the target
    coverage: float  # mean, of those that hold

    def __str__(self) -> str:
        return (
            f"{self.violations} of {self.policies} violate ({self.violations / self.policies:.2%}), "
            f"{self.holding / self.policies:.1%} hold, mean coverage {self.coverage:.1%}"
        )


def simulate(documents: int, accuracy: float, target: float, policies: int, seed: int = 0) -> Tally:
    """Policies on as many validation as test documents, each on its own draw; their true precision on a large population."""
    random = np.random.default_rng([seed, documents, round(accuracy * 100), round(target * 1000)])
    model = SimulatedModel(MARGINS[accuracy])
    probabilities, truth = model.answer(POPULATION, random)
    right = probabilities.argmax(axis=1) == truth
    assert abs(right.mean() - accuracy) < 0.01
    holding, violations, coverage = 0, 0, 0.0
    for _ in range(policies):
        policy = choose_policy(target, *model.answer(documents, random), *model.answer(documents, random))
        if policy.holds:
            accepted = confidences(probabilities, policy.temperature) >= policy.threshold
            holding += 1
            violations += bool(right[accepted].mean() < target)
            coverage += float(accepted.mean())
    return Tally(policies, holding, violations, coverage / max(holding, 1))


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    for target in (0.9, 0.95, 0.99):
        for size in SIZES:
            for accuracy in ACCURACIES:
                print(
                    f"target {target}, {size} documents, accuracy {accuracy}: {simulate(size, accuracy, target, count)}",
                    flush=True,
                )
