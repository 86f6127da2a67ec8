"""The trials of a search: how many, by which metric, which is best; trials.json and a picture, added to the best trial's files."""

import hashlib
import io
import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from docml_contract.base import Document
from docml_contract.hyperparameters import Choice, Interval, Scalar
from docml_contract.jobs import JobSpec, Tuning
from docml_contract.log_lines import METRIC_DEFINITIONS
from docml_contract.manifests import FileEntry, JobOutput
from docml_contract.names import OUTPUT, TRIALS
from resources.jobs.interface import JobRefused
from resources.store import Store

PICTURE = "search.png"


class Trial(Document):
    """One training of a search."""

    number: int = Field(ge=1)
    job: str = Field(description="name of its training job; of a local trial, its folder")
    values: dict[str, Scalar] = Field(description="the searched hyperparameters")
    objective: float | None = Field(None, description="value of the objective metric; none: it printed none")
    seconds: float | None = None
    status: Literal["Completed", "Failed", "Stopped", "InProgress"]
    reason: str = ""


class Trials(Document):
    """trials.json."""

    strategy: str
    objective_metric: str
    objective_type: Literal["Maximize", "Minimize"]
    best: int = Field(description="number of the trial whose model was kept")
    trials: tuple[Trial, ...]


def number_of_trials(tuning: Tuning) -> int:
    """MAX_JOBS; for a grid the number of its points, which MAX_JOBS must allow. JobRefused."""
    if tuning.strategy != "Grid":
        return tuning.max_jobs
    points = math.prod(len(choice.values) for choice in tuning.ranges.values() if isinstance(choice, Choice))
    if points > tuning.max_jobs:
        raise JobRefused(
            f"the grid has {points} points and MAX_JOBS is {tuning.max_jobs}: raise MAX_JOBS, or search fewer values"
        )
    return points


def metric_definitions(spec: JobSpec) -> dict[str, str]:
    """Name -> regex: what the trainer prints, and the experiment's own."""
    return {**dict(METRIC_DEFINITIONS), **dict(spec.metric_definitions)}


def best_trial(trials: list[Trial], tuning: Tuning) -> Trial | None:
    """The completed trial with the best objective; of equals the first."""
    scored = [trial for trial in trials if trial.status == "Completed" and trial.objective is not None]
    sign = 1 if tuning.objective_type == "Maximize" else -1
    return max(scored, key=lambda trial: (sign * (trial.objective or 0.0), -trial.number), default=None)


def add_trials(
    store: Store, prefix: str, tuning: Tuning, trials: list[Trial], others: Mapping[str, bytes] | None = None
) -> None:
    """Write trials.json and the picture beside the best trial's files, and name them in its OUTPUT.json, last.

    others: files of other trials that are kept too, by path; the best trial's own stay. May be called again: an OUTPUT.json that names them is left as it is.
    """
    key = f"{prefix}/{OUTPUT}"
    output = JobOutput.from_bytes(store.get(key), store.uri(key))
    if any(entry.path == TRIALS for entry in output.files):
        return
    best = best_trial(trials, tuning)
    assert best is not None
    table = Trials(
        strategy=tuning.strategy,
        objective_metric=tuning.objective_metric,
        objective_type=tuning.objective_type,
        best=best.number,
        trials=tuple(trials),
    )
    there = {entry.path for entry in output.files}
    added = {path: content for path, content in (others or {}).items() if path not in there}
    added |= {TRIALS: table.to_bytes(), PICTURE: picture(table, tuning)}
    for name, content in added.items():
        store.put(f"{prefix}/{name}", content)
    entries = [
        FileEntry(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in added.items()
    ]
    files = tuple(sorted((*output.files, *entries), key=lambda entry: entry.path))
    facts = {**output.facts, "trials": len(trials), "best_trial": best.number, "best_values": best.values}
    store.put(key, output.model_copy(update={"files": files, "facts": facts}).to_bytes())


def picture(table: Trials, tuning: Tuning) -> bytes:
    """The search as PNG: the objective over the trials, and over every searched hyperparameter."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scored = [trial for trial in table.trials if trial.objective is not None]
    objectives = [trial.objective or 0.0 for trial in scored]
    names = sorted(tuning.ranges)
    figure = Figure(figsize=(4 * (len(names) + 1), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(names) + 1, squeeze=False)[0]
    axes[0].plot([trial.number for trial in scored], objectives, "o", color="#4c72b0")
    axes[0].plot([trial.number for trial in scored], _best_so_far(objectives, table), color="#4c72b0", alpha=0.5)
    axes[0].set(xlabel="trial", ylabel=table.objective_metric)
    for axis, name in zip(axes[1:], names, strict=True):
        searched = tuning.ranges[name]
        values = [trial.values.get(name) for trial in scored]
        numeric = isinstance(searched, Interval)
        axis.plot(values if numeric else [str(value) for value in values], objectives, "o", color="#4c72b0")
        if isinstance(searched, Interval) and searched.log:
            axis.set_xscale("log")
        axis.set(xlabel=name)
    for trial in (trial for trial in scored if trial.number == table.best):
        axes[0].plot([trial.number], [trial.objective], "o", color="#c44e52", label="kept")
        axes[0].legend()
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=110, metadata={"Software": None})
    return target.getvalue()


def _best_so_far(objectives: list[float], table: Trials) -> list[float]:
    better = max if table.objective_type == "Maximize" else min
    return [better(objectives[: index + 1]) for index in range(len(objectives))]
