"""What a report says in three sentences, and what a reader should know before trusting it."""

from collections.abc import Mapping, Sequence

import numpy as np

from docml_assets.numbers import counted, signed
from docml_assets.report.predictions import Predictions
from docml_assets.report.schema import NO_DIFFERENCE, ModelReport, ModelSeeds, Pair, Past
from docml_assets.report.statistics import LabelScores
from docml_contract.names import BASELINE

FEW = 10  # documents of a label below which its score says little
NOT_OTHER_SEEDS = "a verdict is about these trained models, not about models trained with other seeds"


def summarize(
    predictions: Predictions,
    models: Mapping[str, ModelReport],
    comparison: Sequence[Pair],
    past: Past,
    seeds: Mapping[str, ModelSeeds],
) -> tuple[str, str, str]:
    """Three sentences: the score, beside the baseline; where it fails, or which model is better; against the past.

    predictions: of the run's own models. models and comparison: of all, the baseline included where there is one.
    """
    own = {name: models[name] for name in predictions.models}
    best = max(own, key=lambda name: own[name].f1_macro)
    pairs = [pair for pair in comparison if BASELINE not in (pair.a, pair.b)]
    second = _verdicts(own, pairs) if len(own) > 1 else _weakness(predictions, best, own[best])
    first = _score(predictions, best, own) + _over_seeds(best, seeds) + _doubts(predictions, best, models, comparison)
    return first + ".", second, _past(past, seeded=bool(seeds))


def warnings(predictions: Predictions, scores: Mapping[str, LabelScores], past: Past) -> list[str]:
    """Facts about the test split that limit what its numbers mean. predictions: of the run's models; scores: the baseline's as well."""
    first = next(iter(scores.values()))
    support = dict(zip(predictions.labels, first.support.tolist(), strict=True))
    absent = [label for label, count in support.items() if count == 0]
    few = [f"{label} ({count})" for label, count in support.items() if 0 < count < FEW]
    said = []
    if absent:
        said.append(
            f"No test document has the label {_list(absent)}: macro-F1 is the mean over the other "
            f"{len(predictions.labels) - len(absent)} labels, and nothing is known about {'it' if len(absent) == 1 else 'them'}."
        )
    if len(predictions.labels) - len(absent) == 1:
        said.append(
            "All test documents have one and the same label: no score here tells a good model from a constant one."
        )
    if few:
        said.append(f"Labels with fewer than {FEW} test documents, whose scores say little: {_list(few)}.")
    share = first.support.max() / first.support.sum()
    if BASELINE in scores and len(support) - len(absent) > 1 and scores[BASELINE].total_accuracy <= share:
        said.append(
            f"The baseline labels {100 * scores[BASELINE].total_accuracy:.1f} % correctly, no more than saying one label always would "
            f"({100 * share:.1f} %): to be better than it says little."
        )
    perfect = [name for name in predictions.models if (score := scores[name]).correct.sum() == score.support.sum()]
    if perfect:
        bound = min(1.0, 3 / len(predictions))
        said.append(
            f"{_list(perfect)} made no mistake, so the bootstrap has none to resample and its interval is too narrow: "
            f"with {counted(len(predictions), 'document')} the error rate may still be up to {100 * bound:.1f} % (rule of three)."
        )
    if predictions.groups is not None:
        said.append(
            f"Documents come in {int(predictions.groups.max()) + 1} groups (SPLIT_BY): intervals resample groups; McNemar's p treats "
            "documents as independent, and counts in a verdict only together with the interval."
        )
    if past.runs_on_this_test_set >= 5:
        said.append(
            f"{past.runs_on_this_test_set} earlier runs were scored on these test documents: choosing the best of many by its test score "
            "makes the score too good. Fresh documents would tell."
        )
    return said


def _score(predictions: Predictions, best: str, models: Mapping[str, ModelReport]) -> str:
    model = models[best]
    low, high = model.f1_macro_ci95
    lead = f"On {counted(len(predictions), 'unseen document')} of {counted(len(predictions.labels), 'label')}, "
    others = [f"{name} {models[name].f1_macro:.3f}" for name in models if name != best]
    rest = f" ({_list(others)})" if others else ""
    return (
        f"{lead}{best} reaches a macro-F1 of {model.f1_macro:.3f} (95 % interval {low:.3f} to {high:.3f}) and labels "
        f"{100 * model.accuracy:.1f} % correctly{rest}"
    )


def _over_seeds(best: str, seeds: Mapping[str, ModelSeeds]) -> str:
    """The mean over seeds, which is what another training would be like."""
    if best not in seeds:
        return ""
    found = seeds[best]
    low, high = found.f1_macro_mean_ci95
    return (
        f"; over {len(found.scores)} seeds its mean is {found.f1_macro_mean:.3f} (95 % interval {low:.3f} to {high:.3f}, counting seeds and "
        f"documents; standard deviation between seeds {found.f1_macro_sd:.3f})"
    )


def _doubts(predictions: Predictions, best: str, models: Mapping[str, ModelReport], comparison: Sequence[Pair]) -> str:
    """What belongs in the first sentence: the best model beside the baseline, and models that a constant answer would match."""
    said = []
    for pair in comparison:
        if {pair.a, pair.b} == {best, BASELINE}:
            lead = (pair.seeds or pair).f1_difference
            ahead = (lead if pair.a == best else -lead) > 0
            open_verdict = "is not shown to beat" if ahead else "does not beat"
            verb = {best: "beats", BASELINE: "is worse than"}.get(pair.verdict, open_verdict)
            said.append(f"{best} {verb} the baseline ({predictions.baseline}, {models[BASELINE].f1_macro:.3f})")
    counts = np.bincount(predictions.truth, minlength=len(predictions.labels))
    most, share = predictions.labels[int(counts.argmax())], counts.max() / len(predictions)
    for name, ids in predictions.predicted.items():
        if share < 1 and len(np.unique(ids)) == 1:
            said.append(f"{name} gives every document the label {predictions.labels[ids[0]]}")
        elif models[name].accuracy <= share < 1:
            said.append(f"{name} labels no more correctly than saying {most} always would ({100 * share:.1f} %)")
    return "".join(f"; {text}" for text in said)


def _weakness(predictions: Predictions, name: str, model: ModelReport) -> str:
    present = [row for row in model.per_label if row.support]
    worst = present[-1]
    row = predictions.labels.index(worst.label)
    wrong = {
        label: count
        for index, (label, count) in enumerate(zip(predictions.labels, model.confusion_matrix[row], strict=True))
        if index != row and count
    }
    if all(entry.correct == entry.support for entry in present):
        return f"{name} made no mistake on these documents."
    if not wrong:
        return f"Its weakest label is {worst.label} (F1 {worst.f1:.3f}), which it gives to documents of other labels."
    taken_for = max(wrong, key=lambda label: wrong[label])
    return (
        f"Its weakest label is {worst.label} (F1 {worst.f1:.3f}), which it takes for {taken_for} in "
        f"{wrong[taken_for]} of {counted(worst.support, 'document')}."
    )


def _verdicts(models: Mapping[str, ModelReport], comparison: Sequence[Pair]) -> str:
    shown = [
        (pair.verdict, pair.b if pair.verdict == pair.a else pair.a)
        for pair in comparison
        if pair.verdict != NO_DIFFERENCE
    ]
    open_pairs = [f"{pair.a} and {pair.b}" for pair in comparison if pair.verdict == NO_DIFFERENCE]
    if not shown:
        if len(comparison) == 1:
            found = comparison[0].seeds or comparison[0]
            low, high = found.f1_difference_ci95
            over = " on average over seeds" if comparison[0].seeds else ""
            return (
                f"Between {open_pairs[0]} {NO_DIFFERENCE}: macro-F1 differs by {signed(found.f1_difference)}{over} "
                f"(95 % interval {signed(low)} to {signed(high)})."
            )
        return f"Between none of the {len(models)} models is a difference shown."
    losers = {winner: [b for a, b in shown if a == winner] for winner in dict(shown)}
    said = "; ".join(f"{winner} is better than {_list(beaten)}" for winner, beaten in losers.items())
    rest = f"; {NO_DIFFERENCE} between {_list(open_pairs)}" if open_pairs else ""
    return f"Of these {len(models)} models, {said}{rest}."


def _past(past: Past, *, seeded: bool) -> str:
    if not past.comparisons and seeded:
        return "No earlier run was scored on these test documents."
    if not past.comparisons:
        return f"No earlier run was scored on these test documents; {NOT_OTHER_SEEDS}."
    latest = past.comparisons[0]
    count = past.runs_on_this_test_set
    said = []
    for pair in latest.pairs:
        if pair.verdict == NO_DIFFERENCE:
            said.append(f"{NO_DIFFERENCE} between {pair.a} and {pair.b} ({signed(pair.f1_difference)})")
        else:
            said.append(
                f"{pair.a} is {'better' if pair.verdict == pair.a else 'worse'} than {pair.b} ({signed(pair.f1_difference)})"
            )
    return (
        f"{counted(count, 'earlier run')} {'was' if count == 1 else 'were'} scored on these test documents; on the "
        f"{latest.common_documents} shared with run {latest.run}, {_list(said)}; {NOT_OTHER_SEEDS}."
    )


def _list(items: Sequence[str]) -> str:
    shown = list(items[:8]) + ([f"{len(items) - 8} more"] if len(items) > 8 else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
