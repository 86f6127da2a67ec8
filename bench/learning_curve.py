"""Does the learning curve keep its promise? On three real sets the score at twice the documents is forecast from half of them, 50 times
with other documents, and then measured: it should lie in the 80 % interval in 70 to 90 % of the times.

Score and forecast are judged on the same documents, as a run's are. The strength of the penalty is chosen once a set, on the half.
"""

from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from bench._texts import SETS, encode, read_set
from docml_contract.learning_curve import forecast
from docml_trainer.preparation.baseline import FOLDS, answer, choose_strength
from docml_trainer.preparation.baseline_inputs import TermCounts
from docml_trainer.preparation.learning_curve import draw_parts

RESAMPLES = 50
DOCUMENTS = {"bundled": (100, 52), "newsgroups": (600, 400), "licences": (600, 500)}  # fitted at last, judged


def run() -> list[dict[str, Any]]:
    return [row for name in SETS for row in measure(name)]


def measure(name: str) -> list[dict[str, Any]]:
    """Rows of one set."""
    fitted, judged = DOCUMENTS[name]
    texts, labels = read_set(name, 3 * (fitted + judged))
    documents = encode(texts, labels)
    counts = TermCounts(documents.tokens, documents.ends).keep(np.arange(len(texts)))
    random, width = np.random.default_rng(1), int(documents.labels.max()) + 1
    inside, errors, widths, strength = [], [], [], 0.0
    for _ in range(RESAMPLES):
        drawn = random.permutation(len(texts))[: fitted + judged]
        half, asked = np.sort(drawn[: fitted // 2]), np.sort(drawn[fitted:])
        if not strength:
            folds = np.arange(len(half)) % FOLDS
            strength, _ = choose_strength(counts, documents.labels, half, folds, width)
        parts = [*draw_parts(half, documents.labels), np.sort(drawn[:fitted])]
        found = answer(counts, documents.labels, [(rows, asked) for rows in parts], [strength], width)
        said = [each.probabilities[0].argmax(axis=1) for each in found]
        truth = documents.labels[asked]
        scores = [f1_score(truth, ids, labels=np.unique(truth), average="macro", zero_division=0) for ids in said]
        sizes = np.array([len(rows) for rows in parts])
        value, low, high = forecast(sizes[:-1], np.array(scores[:-1]), fitted)
        inside.append(low <= scores[-1] <= high)
        errors.append(scores[-1] - value)
        widths.append(high - low)
    about = f"{name}, {fitted // 2} to {fitted} documents"
    return [
        _row(f"forecasts whose 80 % interval holds the score, {about}", "%", 100 * np.mean(inside)),
        _row(f"mean error of the forecast, {about}", "macro-F1", np.mean(errors)),
        _row(f"mean width of the interval, {about}", "macro-F1", np.mean(widths)),
    ]


def _row(metric: str, unit: str, value: Any) -> dict[str, Any]:
    return {
        "bench": "learning_curve",
        "metric": metric,
        "unit": unit,
        "ours": round(float(value), 4),
        "peers": {},
        "ratio": None,
    }
