"""Jobs on this machine keep the contract of jobs, and survives kills of everything around it."""

import os
import sys
from pathlib import Path

import pytest

from resources.jobs.backend import Job
from resources.jobs.engine.engine import Engine
from resources.jobs.engine.records import JobRecord
from resources.jobs.local.backend import LocalBackend
from resources.jobs.local.state import state_key
from resources.store import Store
from tests.contracts import jobs_contract
from tests.contracts.jobs_contract import JobsContract

FAKE_TRAINER = str(Path(__file__).parents[1] / "fake_trainer.py")


class LocalBench:
    """Local jobs over a folder store, with the fake trainer."""

    def __init__(self, folder: Path) -> None:
        self.environment = {**os.environ, "DAGSTER_HOME": str(folder / "home")}
        self.store = Store.open(str(folder / "store"), environment=self.environment)
        self.scratch = folder / "home" / "jobs"
        jobs_contract.fill(self.store)

    def engine(self) -> Engine:
        return Engine(self.store, LocalBackend(self.store, self.environment, [sys.executable, FAKE_TRAINER]))

    def started(self) -> list[str]:
        return sorted(path.name.rsplit("-", 1)[0] for path in self.scratch.glob("*") if (path / "logs").is_dir())


@pytest.fixture
def bench(tmp_path: Path) -> LocalBench:
    return LocalBench(tmp_path)


class TestLocalJobs(JobsContract):
    """The contract."""


@pytest.mark.parametrize("content", [b"", b'{"token": "', b"\xff"], ids=["empty", "cut", "no text"])
def test_a_state_that_cannot_be_read_is_named_and_its_job_left_alone(bench: LocalBench, content: bytes) -> None:
    spec, engine = jobs_contract.training(), bench.engine()
    job, records = Job.plan(spec, 1, bench.store.url), engine.context.records
    record = JobRecord(
        name=job.name,
        backend="local",
        attempt=1,
        spec_hash=spec.spec_hash,
        spec=spec,
        request={},
        holder="run-a",
        created_at=0.0,
    )
    assert records.intend(record)
    records.activate(job, 0.0)
    bench.store.put(state_key(job), content)
    damage: list[str] = []
    assert engine.orphans(lambda holder: True, damage) == []
    assert state_key(job) in damage[0]
    assert records.active(), "its entry stays"
