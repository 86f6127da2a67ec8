"""Fixtures that several packages share. Servers start when a test first asks for them and stop with the session."""

import signal
from collections.abc import Iterator

import pytest

from tests.servers.postgres import PostgresServer, postgres
from tests.servers.s3 import S3Server, seaweedfs

# Tests that were started in the background of a shell ignore SIGINT, and so would every process that they start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
