"""The runner of the benchmarks: which there are, what rows they return, what stays in results.json."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench import __main__ as runner


def row(bench: str, ours: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {"bench": bench, "metric": "speed", "unit": "docs/s", "ours": ours, "peers": {}, "ratio": None, **changes}


@pytest.mark.parametrize("name", runner.names())
def test_every_benchmark_can_be_run(name: str) -> None:
    assert callable(importlib.import_module(f"bench.{name}").run)


def test_rows_of_another_form_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("bench.broken")
    module.run = lambda: [{"bench": "broken", "ours": 1}]  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "bench.broken", module)
    with pytest.raises(ValueError, match="bench broken: found a row"):
        runner.rows_of("broken")


def test_results_keep_the_rows_of_other_benchmarks(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    runner.keep([row("a", 1), row("b", 1), row("gone")], {"a", "b", "gone"}, {"a", "b", "gone"}, path)
    runner.keep([row("b", 2), row("b", 3)], {"b"}, {"a", "b"}, path)
    assert [(kept["bench"], kept["ours"]) for kept in json.loads(path.read_text(encoding="utf-8"))] == [
        ("a", 1),
        ("b", 2),
        ("b", 3),
    ]


def test_the_table_shows_peers_and_ratios() -> None:
    text = runner.table([row("a", 12345.6, peers={"other": 0.5}, ratio=2.345), row("b", 0.987, unit="")])
    first, second = text.splitlines()
    assert "12,346 docs/s" in first
    assert "2.35x" in first or "2.34x" in first
    assert first.endswith("other 0.5")
    assert "0.987" in second
