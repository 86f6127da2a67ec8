"""What the tests of faults share: a process that forks commands, and runs that nobody disturbed."""

from collections.abc import Iterator

import pytest

from tests.faults.tiny import EXPERIMENT, Tiny, Warm, warm_commands


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    with warm_commands() as running:
        yield running


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Tiny:
    tiny = Tiny.make(tmp_path_factory.mktemp("undisturbed") / "tiny")
    warm.run(tiny, "run", EXPERIMENT, "-v")
    return tiny


@pytest.fixture(scope="session")
def undisturbed_search(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Tiny:
    tiny = Tiny.make(tmp_path_factory.mktemp("undisturbed-search") / "tiny", tuned=True)
    warm.run(tiny, "run", EXPERIMENT, "-v")
    return tiny
