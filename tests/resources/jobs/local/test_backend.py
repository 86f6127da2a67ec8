"""Jobs on this machine keep the contract of jobs, and survives kills of everything around it."""

import os
import sys
from pathlib import Path

import pytest

from resources.jobs.engine.engine import Engine
from resources.jobs.local.backend import LocalBackend
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
