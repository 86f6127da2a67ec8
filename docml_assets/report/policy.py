"""The decision policy: from which confidence on a model's answers may be accepted without a person (AUTO_ACCEPT_PRECISION).

Selective classification by a threshold on the calibrated top probability (Geifman and El-Yaniv, Selective Classification for Deep Neural
Networks, NeurIPS 2017), with the guarantee from a split that had no part in the choice:

1. Temperature: minimizes the log loss of the validation split (Guo et al., On Calibration of Modern Neural Networks, ICML 2017).
2. Threshold: of up to 100 candidates the one with the greatest coverage times probability that step 3 will confirm it. That
   probability is the beta-binomial prediction of the errors on the test split from those on the validation split (Jeffreys prior).
   Where the test split is too small to confirm any (below a chance of 5 %), as if it were 4, 16 or 64 times as large.
3. Test, once: the one-sided 95 % lower bound of the precision (Clopper and Pearson, Biometrika 1934) must reach the target, else the
   policy accepts nothing.

Temperature and threshold do not depend on the test documents, so the accepted ones among these are right or wrong like draws with the policy's
true precision: whatever that is, if it is below the target, step 3 confirms it with a probability of at most 5 %. This holds for documents
that are independent of each other and of the kind that will be classified, and for the first policy that is judged on a test split.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import optimize, special, stats

from docml_assets.report.predictions import GUID, LABEL, Floats, Ids
from docml_assets.report.schema import Bin, Calibration, LabelAcceptance, ModelPolicy, PolicyPoint
from docml_assets.report.statistics import calibration
from docml_contract.names import PROBABILITIES_SUFFIX
from docml_contract.policy import SMALLEST, Policy, PolicyCount, confidences

LEVEL = 0.95  # of the bound
CANDIDATES = 100
LEAST_CHANCE = 0.05
ENLARGEMENTS = (1, 4, 16, 64)
CELLS_AT_ONCE = 1_000_000  # candidates times numbers of errors: large test splits have many of these
CURVE_POINTS = 100
TEMPERATURES = (0.05, 20.0)
MOST_DOCUMENTS = 10_000_000  # up to which it is said how many would be needed


def model_policy(target: float, labels: Sequence[str], model: str, valid: pa.Table, test: pa.Table) -> ModelPolicy:
    """The policy of one model, and what the report shows of it.

    valid, test: artifact_guid, label, and `<model>_probabilities` in the order of `labels`.
    """
    seen, judged = (_answers(table, model, labels) for table in (valid, test))
    policy = choose_policy(target, *seen, *judged)
    probabilities, truth = judged
    confidence, predicted = confidences(probabilities, policy.temperature), probabilities.argmax(axis=1)
    accepted = confidence >= policy.threshold
    right = predicted == truth
    ece, bins = calibration(confidence, right)
    return ModelPolicy(
        policy=policy,
        calibration=Calibration(ece=ece, bins=tuple(Bin(**asdict(entry)) for entry in bins)),
        curve=tuple(_curve(confidence, right)),
        by_label=tuple(
            LabelAcceptance(
                label=label,
                predicted=int(said.sum()),
                accepted=int((said & accepted).sum()),
                correct=int((said & accepted & right).sum()),
            )
            for label, said in ((label, predicted == index) for index, label in enumerate(labels))
        ),
    )


def choose_policy(
    target: float, valid_probabilities: Floats, valid_truth: Ids, test_probabilities: Floats, test_truth: Ids
) -> Policy:
    """Temperature and threshold from the validation split, judged on the test split.

    probabilities: float64[documents, labels]. truth: int64[documents].
    """
    temperature = best_temperature(valid_probabilities, valid_truth)
    confidence = confidences(valid_probabilities, temperature)
    right = valid_probabilities.argmax(axis=1) == valid_truth
    threshold = best_threshold(confidence, right, target, len(test_truth))
    judged = confidences(test_probabilities, temperature) >= threshold
    test = PolicyCount(
        documents=len(test_truth),
        accepted=int(judged.sum()),
        correct=int((judged & (test_probabilities.argmax(axis=1) == test_truth)).sum()),
    )
    accepted = confidence >= threshold
    bound = lower_bound(test.correct, test.accepted)
    return Policy(
        target=target,
        temperature=temperature,
        threshold=threshold,
        valid=PolicyCount(documents=len(right), accepted=int(accepted.sum()), correct=int((accepted & right).sum())),
        test=test,
        lower_bound=bound,
        documents_needed=None if bound >= target else documents_needed(test, target),
    )


def best_temperature(probabilities: Floats, truth: Ids) -> float:
    """The temperature with the least log loss, between 0.05 and 20."""
    logs = np.log(np.clip(probabilities, SMALLEST, None))
    own = logs[np.arange(len(truth)), truth]

    def log_loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float((special.logsumexp(logs * inverse, axis=1) - own * inverse).mean())

    low, high = np.log(TEMPERATURES)
    found = optimize.minimize_scalar(log_loss, bounds=(low, high), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


def best_threshold(confidence: Floats, right: npt.NDArray[np.bool_], target: float, test_documents: int) -> float:
    """The threshold that promises most (see the module's head). confidence, right: of the validation documents.

    It lies between the confidences of two documents, so that rounding accepts nobody else.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, errors = confidence[order], np.cumsum((~right[order]).astype(np.int64))
    ends = np.flatnonzero(np.append(ranked[:-1] > ranked[1:], True))  # documents of equal confidence go together
    if len(ends) > CANDIDATES:
        ends = ends[np.linspace(0, len(ends) - 1, CANDIDATES).round().astype(np.int64)]
    accepted, wrong = ends + 1, errors[ends]
    for factor in ENLARGEMENTS:
        expected = np.maximum(1, np.round(accepted * factor * test_documents / len(ranked))).astype(np.int64)
        confirmed = _confirmed(accepted, wrong, expected, target)
        chosen = int((accepted * confirmed).argmax())
        if confirmed[chosen] >= LEAST_CHANCE:
            break
    best = int(ends[chosen])
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)


def _confirmed(accepted: Ids, wrong: Ids, expected: Ids, target: float) -> Floats:
    """Probability that `expected` test documents have few enough errors for the bound, given the validation's errors: float64[candidates]."""
    allowed = allowed_errors(expected, target)
    blocks = min(len(accepted), 1 + len(accepted) * int(allowed.max(initial=-1) + 1) // CELLS_AT_ONCE)
    parts = np.array_split(np.arange(len(accepted)), blocks)
    return np.concatenate([_at_most(allowed[part], accepted[part], wrong[part], expected[part]) for part in parts])


def _at_most(allowed: Ids, accepted: Ids, wrong: Ids, expected: Ids) -> Floats:
    """Probability of at most `allowed` errors among `expected` documents, by candidate."""
    errors = np.arange(int(allowed.max(initial=-1)) + 1)
    if not len(errors):
        return np.zeros(len(accepted))
    n, a, b = expected[:, None], wrong[:, None] + 0.5, (accepted - wrong)[:, None] + 0.5
    inside = errors <= allowed[:, None]
    some = np.where(inside, errors, 0)
    logs = (
        -special.betaln(n - some + 1, some + 1)
        - np.log(n + 1)
        + special.betaln(some + a, n - some + b)
        - special.betaln(a, b)
    )
    return np.asarray((np.exp(logs) * inside).sum(axis=1))


def allowed_errors(documents: Ids, target: float) -> Ids:
    """The most errors among so many accepted documents with which the lower bound reaches the target; -1 where none is few enough.

    The bound of k right ones in n reaches p exactly if P(X >= k) <= 5 % for X ~ Binomial(n, p).
    """
    least_right = stats.binom.isf(1 - LEVEL, documents, target).astype(np.int64) + 1
    return np.maximum(documents - least_right, -1)


def lower_bound(right: int, documents: int) -> float:
    """One-sided 95 % Clopper-Pearson lower bound of a proportion; 0 for no documents."""
    return float(stats.beta.ppf(1 - LEVEL, right, documents - right + 1)) if right else 0.0


def documents_needed(test: PolicyCount, target: float) -> int | None:
    """The least number of test documents with which the bound would reach the target at the same coverage and precision.

    None where none would: nothing is accepted, or the precision is not above the target.
    """
    if not test.accepted or test.correct <= target * test.accepted:
        return None
    share_wrong = 1 - test.correct / test.accepted

    def enough(accepted: int) -> bool:
        allowed = int(allowed_errors(np.array([accepted]), target)[0])
        return allowed >= np.ceil(share_wrong * accepted - 1e-9)

    high = max(1, test.accepted)
    while not enough(high):
        high *= 2
        if high > MOST_DOCUMENTS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return int(np.ceil(high / test.coverage))


def _curve(confidence: Floats, right: npt.NDArray[np.bool_]) -> list[PolicyPoint]:
    """Coverage and precision of up to 100 thresholds, the highest first."""
    order = np.argsort(-confidence, kind="stable")
    correct = np.cumsum(right[order])
    sizes = np.unique(np.linspace(1, len(order), min(CURVE_POINTS, len(order))).round().astype(np.int64))
    return [
        PolicyPoint(
            threshold=float(confidence[order[size - 1]]),
            coverage=float(size / len(order)),
            precision=float(correct[size - 1] / size),
        )
        for size in sizes
    ]


def _answers(table: pa.Table, model: str, labels: Sequence[str]) -> tuple[Floats, Ids]:
    """(float64[documents, labels], int64[documents]) of a table of the inference job, in the order of its GUIDs."""
    ordered = table.sort_by(GUID)
    number = {label: index for index, label in enumerate(labels)}
    truth = np.array([number[label] for label in ordered[LABEL].to_pylist()], dtype=np.int64)
    column: Any = ordered[model + PROBABILITIES_SUFFIX].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    return values.reshape(len(truth), len(labels)), truth
