"""A runtime without processes, on a clock that the test turns: fast enough for thousands of schedules."""

from collections.abc import Callable

from tests.servers.sagemaker.faults import Faults
from tests.servers.sagemaker.jobs import TRAINING, TUNING, Job
from tests.servers.sagemaker.service import SageMaker
from tests.servers.sagemaker.tuning import Tuner


class ManualClock:
    """Time in seconds that moves only when told."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class ScriptedRuntime:
    """Jobs that start, run for `seconds` and end as planned when `advance` is called.

    `complete(job)` is called when a job succeeds, to write its output; `outcome(job)` may plan a failure: it returns None
    for success, or the FailureReason.
    """

    def __init__(
        self,
        faults: Faults,
        clock: Callable[[], float],
        *,
        seconds: float = 30.0,
        complete: Callable[[Job], None] = lambda job: None,
        outcome: Callable[[Job], str | None] = lambda job: None,
    ) -> None:
        self.faults = faults
        self.clock = clock
        self.seconds = seconds
        self.complete = complete
        self.outcome = outcome
        self.service: SageMaker | None = None
        self.running: list[Job] = []
        self.tuners: list[Tuner] = []

    def start(self, job: Job) -> None:
        if job.kind is TUNING:
            assert self.service is not None
            self.tuners.append(Tuner(self.service, job))
        elif self.faults.job("capacity"):
            reason = "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
            job.finish("Failed", reason=reason)
        else:
            self.running.append(job)

    def advance(self) -> None:
        """Let every job do what is due at the clock's present time."""
        for job in list(self.running):
            self._advance(job)
        self.tuners = [tuner for tuner in self.tuners if not tuner.step()]
        self.running = [job for job in self.running if not job.done]

    def _advance(self, job: Job) -> None:
        if job.stop_requested.is_set():
            job.finish("Stopped")
            return
        age = self.clock() - job.created
        if age >= self.seconds / 3 and job.secondary == "Starting":
            job.enter("Training" if job.kind is TRAINING else "Processing")
            job.started = self.clock()
        if age >= self.seconds:
            reason = self.outcome(job)
            if reason is None:
                if job.parent is not None:
                    job.metrics[job.request["HyperParameters"]["_tuning_objective_metric"]] = (0.5, self.clock())
                self.complete(job)
                job.finish("Completed")
            else:
                job.finish("Failed", reason=reason)
