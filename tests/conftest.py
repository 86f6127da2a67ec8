"""Fixtures that several packages share. Servers start when a test first asks for them and stop with the session."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.postgres import PostgresServer, postgres
from tests.servers.s3 import S3Server, seaweedfs

# Tests that were started in the background of a shell ignore SIGINT, and so would every process that they start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A file is one process's work: whichever of these began last would run alone at the end.
LONGEST_FILES = (
    "browser/test_interruptions.py",
    "docml_assets/cli/test_run.py",
    "test_quality.py",
    "docml_trainer/training/test_train_processes.py",
    "docml_assets/cli/test_predict.py",
    "test_cloud_graph.py",
    "experiments/test_pages.py",
    "docml_assets/cli/test_endpoints.py",
    "browser/test_dagster_ui.py",
    "test_readme.py",
    "docml_trainer/test_prepare.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first (`make test` tells the processes to take files in this order)."""
    order = {Path(__file__).parent / file: place for place, file in enumerate(LONGEST_FILES)}
    assert all(path.is_file() for path in order), "LONGEST_FILES: a file has another name now"
    items.sort(key=lambda item: order.get(item.path, len(order)))


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
