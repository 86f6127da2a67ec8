"""The champion of an experiment: the model that people and services use by default. A history that only grows.

    <EXP>/champion/000001.json     put-if-absent; a rollback is an entry of its own

A challenger is compared with the champion by the statistics of the report, on the test documents of both: neither was trained or
validated on these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from pydantic import Field

from docml_assets.errors import DocmlError
from docml_assets.numbers import signed
from docml_assets.report.comparison import PreviousRun, compare_runs, read_run
from docml_assets.report.schema import Pair
from docml_contract.base import Document, UnreadableDocument
from docml_contract.manifests import utc_now
from docml_contract.names import PREDICTION_SUFFIX, PROBABILITY_SUFFIX, RunPlace, check_experiment_name
from resources.store import Store


class ChampionError(DocmlError):
    """There is no champion, or a model cannot become one."""


class AlreadyChampion(ChampionError):
    """The model that somebody promotes is the champion."""


class Promotion(Document):
    """champion/<sequence>.json."""

    schema_version: int = 1
    sequence: int = Field(ge=1)
    run: int = Field(ge=1)
    model: str
    promoted_at: str = Field(description="UTC, ISO 8601")
    by: str = Field(description="who asked")
    reason: str | None = Field(
        None, description="why it was promoted although it is worse, or nothing could be compared"
    )
    rollback: bool = Field(False, description="takes the promotion before it back")
    against_run: int | None = Field(None, description="the champion that it was compared with")
    against_model: str | None = None
    documents: int | None = Field(None, description="test documents of both")
    comparison: Pair | None = None


@dataclass(frozen=True)
class Verdict:
    """What the comparison of a challenger with the champion says. `pair`: None where nothing could be compared."""

    worse: bool
    documents: int
    pair: Pair | None
    sentence: str


def read_history(store: Store, experiment: str) -> list[Promotion]:
    """All entries, oldest first. UnreadableDocument."""
    keys = [stored.key for stored in store.list(_folder(experiment)) if stored.key.endswith(".json")]
    try:
        return [Promotion.from_bytes(store.get(key), store.uri(key)) for key in sorted(keys)]
    except UnreadableDocument as error:
        raise UnreadableDocument(
            f"{error}. Restore the file; or remove it, and look at docml champion {experiment}: what is left counts, and the model "
            "that should be the champion can be promoted again"
        ) from error


def read_champion(store: Store, experiment: str) -> Promotion:
    """The promotion that counts now. ChampionError if there is none."""
    remaining = standing(read_history(store, experiment))
    if not remaining:
        raise ChampionError(f"{experiment} has no champion: promote a model with docml promote {experiment} RUN")
    return remaining[-1]


def compare_with_champion(store: Store, experiment: str, run: int, model: str) -> tuple[Promotion | None, Verdict]:
    """The present champion, and what the report's statistics say about the challenger. ReportError if it has no report."""
    challenger = _of_model(read_run(store, RunPlace(experiment, run)), model)
    remaining = standing(read_history(store, experiment))
    if not remaining:
        return None, Verdict(False, 0, None, "there was no champion")
    current = remaining[-1]
    if (current.run, current.model) == (run, model):
        raise AlreadyChampion(
            f"run {run}, {model} is the champion of {experiment} already, since {current.promoted_at}"
        )
    incumbent = _of_model(read_run(store, RunPlace(experiment, current.run)), current.model)
    names = f"run {run} {model}", f"run {current.run} {current.model}"
    if not set(challenger.predictions["artifact_guid"].to_pylist()) & set(
        incumbent.predictions["artifact_guid"].to_pylist()
    ):
        return current, Verdict(
            True, 0, None, f"{names[0]} and {names[1]} share no test document, so that nothing shows which is better"
        )
    compared = compare_runs(challenger, incumbent)
    (pair,) = compared.comparison.pairs
    worse = pair.verdict == names[1]
    low, high = pair.f1_difference_ci95
    verdict = (
        "is shown to be worse than"
        if worse
        else "is shown to be better than"
        if pair.verdict == names[0]
        else "is not shown to be worse than"
    )
    sentence = (
        f"{names[0]} {verdict} {names[1]} on {compared.common_documents} test documents of both: macro-F1 {signed(pair.f1_difference)} "
        f"(95 % {signed(low)} to {signed(high)})"
    )
    return current, Verdict(worse, compared.common_documents, pair, sentence)


def promote(
    store: Store, experiment: str, run: int, model: str, *, by: str, force: str | None
) -> tuple[Promotion, str]:
    """Make the model the champion; the entry, and a sentence on the comparison. ChampionError if it is worse and not forced."""
    current, verdict = compare_with_champion(store, experiment, run, model)
    if verdict.worse and force is None:
        raise ChampionError(
            f"{verdict.sentence}; the champion stays (--force REASON promotes all the same, and records why)"
        )
    entry = _append(
        store,
        experiment,
        run=run,
        model=model,
        by=by,
        reason=force,
        against_run=current.run if current else None,
        against_model=current.model if current else None,
        documents=verdict.documents or None,
        comparison=verdict.pair,
    )
    return entry, verdict.sentence


def rollback(store: Store, experiment: str, *, by: str) -> Promotion:
    """Take the last promotion back: the entry that names the champion before it. ChampionError if there is none before."""
    remaining = standing(read_history(store, experiment))
    if len(remaining) < 2:
        raise ChampionError(f"{experiment} has no earlier champion to go back to; expected at least two promotions")
    before = remaining[-2]
    return _append(store, experiment, run=before.run, model=before.model, by=by, rollback=True)


def standing(entries: Sequence[Promotion]) -> list[Promotion]:
    """The promotions that no rollback took back."""
    found: list[Promotion] = []
    for entry in entries:
        if not entry.rollback:
            found.append(entry)
            continue
        del found[-1:]
        if [(kept.run, kept.model) for kept in found[-1:]] != [(entry.run, entry.model)]:
            found.append(entry)  # the promotion that it went back to was removed
    return found


def _append(store: Store, experiment: str, **fields: object) -> Promotion:
    sequence = max((entry.sequence for entry in read_history(store, experiment)), default=0) + 1
    entry = Promotion.model_validate({"sequence": sequence, "promoted_at": utc_now(), **fields})
    if not store.put_if_absent(f"{_folder(experiment)}/{sequence:06d}.json", entry.to_bytes()):
        raise ChampionError(
            f"somebody else changed the champion of {experiment} just now: look at docml champion {experiment}, then try again"
        )
    return entry


def _folder(experiment: str) -> str:
    return f"{check_experiment_name(experiment)}/champion"


def _of_model(run: PreviousRun, model: str) -> PreviousRun:
    """The run with the predictions of one model only."""
    columns = [model + PREDICTION_SUFFIX, model + PROBABILITY_SUFFIX]
    table: pa.Table = run.predictions
    if columns[0] not in table.column_names:
        raise ChampionError(f"{run.experiment} run {run.run} has no predictions of {model!r}")
    kept = [name for name in ("artifact_guid", "label", "group") if name in table.column_names]
    return PreviousRun(run.experiment, run.run, table.select([*kept, *columns]), run.labels)
