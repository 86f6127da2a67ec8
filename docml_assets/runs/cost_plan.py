"""What a run is about to start: its jobs and machines, the worst that they may cost, and what they took in earlier runs."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from docml_assets.experiment.settings.settings import Settings
from docml_assets.numbers import duration
from docml_assets.runs.claims import run_folders
from docml_contract.jobs import CURVE_PARTS, Compute
from docml_contract.names import INFERENCE, PREPARATION, TRAINING, TUNING, RunPlace
from resources.errors import ResourceError
from resources.jobs.engine.records import JobRecord, job_records
from resources.jobs.interface import cost, most
from resources.store import Store

MERGE = "merging of shards"
RECORD_STEPS = {MERGE: "preparation-merge"}  # a step's name in the records of its jobs, where it is another one
EARLIER_RUNS = 5  # of the newest that are looked at
# From Create until the container runs, where no earlier job of the account tells.
START_SECONDS = 360.0


@dataclass(frozen=True)
class PlannedStep:
    """The jobs of one step."""

    name: str
    compute: Compute
    jobs: int  # that are started if nothing fails
    most_jobs: int  # trials counted, of which each has machines of its own
    models: tuple[str, ...] = ()

    @property
    def machines(self) -> str:
        """`2 x ml.g5.xlarge`."""
        return f"{self.compute.instance_count} x {self.compute.instance_type}"


@dataclass(frozen=True)
class CostPlan:
    """The steps of a run, and the records of the jobs from which time and cost are expected."""

    steps: tuple[PlannedStep, ...]
    prices: Mapping[str, float]
    earlier: tuple[JobRecord, ...] = ()  # completed, the newest last

    @classmethod
    def make(cls, settings: Settings, performed: Iterable[str], prices: Mapping[str, float]) -> "CostPlan":
        """Of the steps that are performed; nothing is looked up."""
        return cls(tuple(_steps(settings, frozenset(performed))), prices)

    def with_records(self, store: Store, experiment: str, backend: Literal["local", "sagemaker"]) -> "CostPlan":
        """With what earlier runs' jobs took, on the same kind of machines; a store that does not answer leaves it unknown."""
        found: list[JobRecord] = []
        try:
            for number in run_folders(store, experiment)[-EARLIER_RUNS:]:
                found += [
                    record
                    for record in job_records(store, RunPlace(experiment, number))
                    if record.status == "Completed"
                ]
        except ResourceError:
            return self
        return CostPlan(self.steps, self.prices, tuple(record for record in found if record.backend == backend))

    @property
    def jobs(self) -> int:
        """That are started if nothing fails."""
        return sum(step.jobs for step in self.steps)

    def worst_cases(self) -> dict[str, float]:
        """Step -> USD if each of its jobs, in one attempt, runs into its time limit; where the price is known."""
        found = {step.name: most(step.compute, self.prices, step.most_jobs) for step in self.steps}
        return {step: worst for step, worst in found.items() if worst is not None}

    def describe(self, *, on_aws: bool) -> list[str]:
        """Lines for people."""
        counted = [f"{step.name} {step.jobs}" for step in self.steps if step.jobs]
        lines = [f"jobs: {self.jobs} ({', '.join(counted)})" if counted else "jobs: none"]
        if on_aws and counted:
            machines = [f"{step.name} on {step.machines}" for step in self.steps]
            lines += [f"machines: {', '.join(machines)}", self._worst_line()]
        return [*lines, *([self._expected_line(on_aws=on_aws)] if counted else [])]

    def _worst_line(self) -> str:
        worst = self.worst_cases()
        unknown = sorted({step.compute.instance_type for step in self.steps if step.name not in worst})
        if not worst:
            return f"worst case: not known: DOCML_PRICES names no price of {', '.join(unknown)}"
        parts = ", ".join(f"{step} {usd:.2f}" for step, usd in worst.items())
        lacking = f"; not counted: {', '.join(unknown)}, of which DOCML_PRICES names no price" if unknown else ""
        return f"worst case: {sum(worst.values()):.2f} USD if every job runs into its time limit ({parts}){lacking}"

    def _expected_line(self, *, on_aws: bool) -> str:
        """Time and cost as in the newest earlier run that tells of a step."""
        running, usd, known = 0.0, 0.0, True
        waits: list[float] = []
        runs: set[int] = set()
        for step in (step for step in self.steps if step.jobs):
            records = self._like(step)
            if not records:
                return f"expected: not known: no earlier run had a job like those of {step.name}{self._start(on_aws, [], self.jobs)}"
            share = step.jobs / len(records)
            running += share * sum(record.seconds for record in records)
            waits += [_wait(record) for record in records]
            runs |= {record.spec.run for record in records}
            costs = [cost(step.compute, self.prices, record.billable_seconds) for record in records]
            known = known and None not in costs
            usd += share * sum(each or 0.0 for each in costs)
        spent = f" and {usd:.2f} USD" if on_aws and known else ""
        which = f"run{'s' if len(runs) > 1 else ''} {', '.join(map(str, sorted(runs)))}"
        return f"expected: {duration(running)} of jobs{spent}, as in {which}{self._start(on_aws, waits, self.jobs)}"

    def _like(self, step: PlannedStep) -> list[JobRecord]:
        """The newest record of the same kind of job on the same machines: one, or one a model."""
        wanted = RECORD_STEPS.get(step.name, step.name)
        newest: dict[str | None, JobRecord] = {}
        for record in self.earlier:
            theirs = record.spec.compute
            machines = (theirs.instance_type, theirs.instance_count) == (
                step.compute.instance_type,
                step.compute.instance_count,
            )
            if record.spec.step == wanted and machines and (not step.models or record.spec.model in step.models):
                newest[record.spec.model] = record
        return list(newest.values())

    def _start(self, on_aws: bool, waits: list[float], jobs: int) -> str:
        if not on_aws:
            return ""
        each = sum(waits) / len(waits) if waits else START_SECONDS
        return f", and {duration(each * jobs)} of waiting for machines ({jobs} starts of {duration(each)})"


def _steps(settings: Settings, performed: frozenset[str]) -> Iterator[PlannedStep]:
    models = settings.model_names
    seeds = 1 if TUNING in performed else max(1, len(settings.seeds))
    if PREPARATION in performed:
        yield PlannedStep(PREPARATION, settings.compute("preparation"), 1, 1)
    trains = settings.compute("training")
    if TRAINING in performed:
        jobs = len(models) * seeds + (len(CURVE_PARTS) if settings.learning_curve else 0)
        yield PlannedStep(TRAINING, trains, jobs, jobs, models)
    if TUNING in performed:
        yield PlannedStep(TUNING, trains, len(models), len(models) * settings.max_jobs, models)
    if INFERENCE in performed:
        by_training = TRAINING in performed and settings.infers_in_training
        yield PlannedStep(INFERENCE, settings.compute("inference"), 0 if by_training else seeds, seeds)
    if PREPARATION in performed and settings.preparation_instance_count > 1:
        yield PlannedStep(MERGE, settings.compute("preparation", hosts=1), 1, 1)


def _wait(record: JobRecord) -> float:
    """Seconds from the request until the machines ran."""
    if not record.started_at:
        return START_SECONDS
    return max(0.0, datetime.fromisoformat(record.started_at).timestamp() - record.created_at)
