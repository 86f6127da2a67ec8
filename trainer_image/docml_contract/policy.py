"""policy.json: from which confidence on a model's answers are accepted without a person, and what is known about it.

The report makes it (docml_assets/report/policy.py); whoever answers documents applies it. `confidences` works on arrays without importing
their library, so that all of them compute the same number.
"""

from typing import Any

from pydantic import Field

from docml_contract.base import Document

SMALLEST = 1e-30  # of a probability that stands for 0


class PolicyCount(Document):
    """What a threshold does to the documents of one split."""

    documents: int = Field(ge=0)
    accepted: int = Field(ge=0)
    correct: int = Field(ge=0, description="of the accepted ones")

    @property
    def coverage(self) -> float:
        """Share of the documents that is accepted; 0 where there are none."""
        return self.accepted / self.documents if self.documents else 0.0

    @property
    def precision(self) -> float | None:
        """Share of the accepted documents that is right; None where none is accepted."""
        return self.correct / self.accepted if self.accepted else None


class Policy(Document):
    """policy.json."""

    schema_version: int = 1
    target: float = Field(
        gt=0, lt=1, description="AUTO_ACCEPT_PRECISION: the precision that accepted documents must have"
    )
    temperature: float = Field(gt=0, description="by which logits are divided, chosen on the validation split")
    threshold: float = Field(
        ge=0, description="least confidence of an accepted document, chosen on the validation split"
    )
    valid: PolicyCount
    test: PolicyCount = Field(description="judged once, with temperature and threshold as they were")
    lower_bound: float = Field(
        ge=0, le=1, description="one-sided 95 % Clopper-Pearson bound of the precision on the test split"
    )
    documents_needed: int | None = Field(
        None,
        description="test documents by which the bound would reach the target if nothing else changed; null where none would",
    )

    @property
    def meaning(self) -> list[Any]:
        """What enters data versions: probabilities differ in their last digits between machines, and so do these numbers."""
        counts = [[split.documents, split.accepted, split.correct] for split in (self.valid, self.test)]
        return [self.target, round(self.temperature, 2), round(self.threshold, 4), counts]

    @property
    def holds(self) -> bool:
        """Whether the promised precision is shown; otherwise nothing is accepted."""
        return self.lower_bound >= self.target

    def accepts(self, probabilities: Any) -> Any:
        """Which documents are accepted: bool[documents] for an array float64[documents, labels], one bool for float64[labels]."""
        return (confidences(probabilities, self.temperature) >= self.threshold) & self.holds


def confidences(probabilities: Any, temperature: float) -> Any:
    """The top probability of logits divided by `temperature`: [...] for an array float64[..., labels] of their softmax.

    softmax(z / T) is p ** (1 / T), made to sum to 1, for p = softmax(z): the logits themselves need not be kept.
    """
    powers = probabilities.clip(SMALLEST) ** (1.0 / temperature)
    return powers.max(-1) / powers.sum(-1)
