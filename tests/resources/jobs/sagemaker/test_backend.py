"""SageMaker jobs keep the contract of jobs, against an endpoint that runs them as subprocesses over a real S3 server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.jobs_contract import JobsContract, fill
from tests.resources.jobs.cloud import Cloud, cloud
from tests.servers.s3 import S3Server


@pytest.fixture
def bench(tmp_path: Path, s3_server: S3Server) -> Iterator[Cloud]:
    with cloud(tmp_path, s3_server) as running:
        fill(running.store)
        yield running


class TestSageMakerJobs(JobsContract):
    """The contract."""
