"""The tuner: which values the next trials get, and when a tuning job is over. Steps are taken by the runtime."""

import itertools
import math
import random
from typing import Any

from tests.servers.sagemaker.jobs import TRAINING, Job
from tests.servers.sagemaker.service import SageMaker, child_request


class Tuner:
    """One tuning job. Bayesian searches are answered with random draws: the API is the same, the skill is not needed."""

    def __init__(self, service: SageMaker, job: Job) -> None:
        self.service = service
        self.job = job
        self.config = job.request["HyperParameterTuningJobConfig"]
        limits = self.config["ResourceLimits"]
        self.max_jobs = limits["MaxNumberOfTrainingJobs"]
        self.max_parallel = limits["MaxParallelTrainingJobs"]
        self.random = random.Random(self.config.get("RandomSeed", 0))
        self.grid = list(self._grid()) if self.config["Strategy"] == "Grid" else None
        if self.grid is not None:
            self.max_jobs = min(self.max_jobs, len(self.grid))

    def step(self) -> bool:
        """Start what may start; True when the tuning job has ended."""
        children = self.job.children
        running = [child for child in children if not child.done]
        if self.job.stop_requested.is_set():
            if not running:
                self.job.finish("Stopped")
            return self.job.done
        while len(children) < self.max_jobs and len(running) < self.max_parallel:
            tuned = self.grid[len(children)] if self.grid is not None else self._draw()
            child = self.service.add(TRAINING, child_request(self.job, len(children) + 1, tuned), parent=self.job)
            child.tuned = tuned
            children.append(child)
            running.append(child)
        if not running:
            if any(child.status == "Completed" for child in children):
                self.job.finish("Completed")
            else:
                self.job.finish("Failed", reason="All training jobs failed. Please look at the status of each of them.")
        return self.job.done

    def _grid(self) -> Any:
        names = [entry["Name"] for entry in self.config["ParameterRanges"].get("CategoricalParameterRanges", [])]
        values = [entry["Values"] for entry in self.config["ParameterRanges"].get("CategoricalParameterRanges", [])]
        for combination in itertools.product(*values):
            yield {name: f'"{value}"' for name, value in zip(names, combination, strict=True)}

    def _draw(self) -> dict[str, str]:
        ranges = self.config["ParameterRanges"]
        drawn = {}
        for entry in ranges.get("CategoricalParameterRanges", []):
            drawn[entry["Name"]] = f'"{self.random.choice(entry["Values"])}"'  # the service quotes categoricals
        for entry in ranges.get("IntegerParameterRanges", []):
            drawn[entry["Name"]] = str(round(self._number(entry)))
        for entry in ranges.get("ContinuousParameterRanges", []):
            drawn[entry["Name"]] = repr(self._number(entry))
        return drawn

    def _number(self, entry: dict[str, str]) -> float:
        low, high = float(entry["MinValue"]), float(entry["MaxValue"])
        if entry.get("ScalingType") == "Logarithmic":
            return math.exp(self.random.uniform(math.log(low), math.log(high)))
        return self.random.uniform(low, high)
