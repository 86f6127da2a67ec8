"""Where a run's numbers come from: data versions, hashes, jobs with their duration and cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class JobLine:
    """One job of the run."""

    step: str
    name: str
    model: str | None = None
    seconds: float | None = None
    cost_usd: float | None = None  # where the instance's price is known
    url: str | None = None  # of its page or log; shown as a link if it is http(s)


@dataclass(frozen=True)
class Lineage:
    """Shown at the end of the report."""

    data_versions: Mapping[str, str] = field(default_factory=dict)  # asset -> data version
    hashes: Mapping[str, str] = field(default_factory=dict)  # what it is of -> sha256 or git revision
    jobs: tuple[JobLine, ...] = ()

    @property
    def seconds(self) -> float:
        """All jobs' durations, where they are known."""
        return sum(job.seconds or 0.0 for job in self.jobs)

    @property
    def cost_usd(self) -> float | None:
        """All jobs' cost; None where no job's is known."""
        known = [job.cost_usd for job in self.jobs if job.cost_usd is not None]
        return sum(known) if known else None
