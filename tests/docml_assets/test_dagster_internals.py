"""What docml takes from inside Dagster is there, and takes what it is given."""

import ast
import importlib
import inspect
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.execution.api import execute_run_iterator
from sqlalchemy.engine.default import DefaultDialect

from docml_assets import dagster_internals

PACKAGE = Path(dagster_internals.__file__).parent


def private_imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of what a file imports from inside Dagster."""
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom))
    return [
        (str(node.module), alias.name)
        for node in nodes
        if (node.module or "").startswith("dagster._")
        for alias in node.names
    ]


@pytest.mark.parametrize(("module", "name"), private_imports(Path(dagster_internals.__file__)))
def test_dagster_still_has(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name), (
        f"dagster {dg.__version__} has no {module}.{name} any more: mend docml_assets/dagster_internals.py"
    )


@pytest.mark.parametrize(
    ("called", "parameters"),
    [
        (execute_run_iterator, ["job", "dagster_run", "instance"]),
        (InMemoryJob, ["job_def"]),
        (
            dg.DagsterInstance.ephemeral().event_log_storage.get_asset_check_execution_history,
            ["check_key", "limit", "status", "partition_filter"],
        ),
    ],
    ids=["execute_run_iterator", "InMemoryJob", "get_asset_check_execution_history"],
)
def test_it_takes_what_it_is_given(called: Callable[..., Any], parameters: list[str]) -> None:
    found = list(inspect.signature(called).parameters)
    assert [name for name in parameters if name not in found] == [], (
        f"dagster {dg.__version__} changed {called}: mend docml_assets/dagster_internals.py"
    )


def test_nobody_else_looks_inside_dagster() -> None:
    others = [path for path in PACKAGE.rglob("*.py") if path.name != "dagster_internals.py"]
    assert {str(path.relative_to(PACKAGE)): found for path in others if (found := private_imports(path))} == {}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are kept for one test."""
    for name in (
        "event_log.sqlite.sqlite_event_log",
        "runs.sqlite.sqlite_run_storage",
        "schedules.sqlite.sqlite_schedule_storage",
    ):
        module = importlib.import_module(f"dagster._core.storage.{name}")
        monkeypatch.setattr(module, "create_engine", module.create_engine)  # put back at the end
    dagster_internals.keep_engines()


@pytest.mark.usefixtures("kept")
def test_a_home_has_an_engine_for_each_of_its_databases(tmp_path: Path) -> None:
    engines: dict[str, set[int]] = {}

    def note(connection: sqlalchemy.Connection) -> None:
        engines.setdefault(Path(str(connection.engine.url.database)).name, set()).add(id(connection.engine))

    sqlalchemy.event.listen(sqlalchemy.Engine, "engine_connect", note)
    try:
        with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
            for number in range(3):
                instance.add_dynamic_partitions("experiment_run", [f"EXP-1-a|{number}"])
                assert len(instance.get_dynamic_partitions("experiment_run")) == number + 1
                assert instance.get_runs_count() == 0
                assert instance.all_instigator_state() == []
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "engine_connect", note)
    assert {name: len(found) for name, found in engines.items()} == {"index.db": 1, "runs.db": 1, "schedules.db": 1}


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(("raised", "said"), [(DagsterExecutionInterruptedError, 0), (OSError, 1)])
def test_an_interrupt_while_a_connection_closes_is_no_traceback(
    raised: type[BaseException],
    said: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def close(dialect: object, connection: object) -> None:
        raise raised

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        assert instance.get_runs_count() == 0
        with monkeypatch.context() as patched, suppress(raised):
            patched.setattr(DefaultDialect, "do_close", close)
            instance.get_runs_count()
    assert len(caplog.records) == said
