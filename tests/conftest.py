"""Fixtures that several rooms share. Servers start when a test first asks for them and stop with the session."""

from collections.abc import Iterator

import pytest

from tests.servers.postgres import PostgresServer, postgres
from tests.servers.s3 import S3Server, seaweedfs


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A SeaweedFS. Where it cannot start, every test that needs it fails with its log: nothing is skipped."""
    with seaweedfs() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL. Where it cannot start, every test that needs it fails: nothing is skipped."""
    with postgres() as server:
        yield server
