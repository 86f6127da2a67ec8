"""docml compare over a real store."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from docml_assets.cli import main
from docml_assets.cli.report import compare
from docml_contract.names import PREDICTIONS, RunPlace
from resources.store import Store
from tests.docml_assets.cli.finished import store_with_two_runs


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("DOCML_STORE", str(tmp_path / "storage"))
    monkeypatch.setenv("COLUMNS", "160")
    return store_with_two_runs(tmp_path / "storage")


def test_compare(store: Store) -> None:
    result = CliRunner().invoke(compare, ["EXP-a", "1", "EXP-b", "3"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "200 common test documents; 0 only of EXP-a run 1, 0 only of EXP-b run 3." in result.output
    assert "EXP-a run 1 tiny is better" in result.output
    assert "A verdict is about these trained models, not about models trained with other seeds." in result.output


def test_labels_that_changed_between_the_runs_are_counted(store: Store) -> None:
    result = CliRunner().invoke(compare, ["EXP-a", "1", "EXP-a", "1"], catch_exceptions=False)
    assert "no difference shown" in result.output
    assert "have another label" not in result.output


def test_truncated_predictions_are_named_with_the_remedy(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunPlace("EXP-b", 3).inference
    whole = store.get(f"{folder}/{PREDICTIONS}")
    store.put(f"{folder}/{PREDICTIONS}", whole[:500])
    with pytest.raises(SystemExit) as ended:
        main(["compare", "EXP-a", "1", "EXP-b", "3"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert f"docml: {store.uri(folder)}: {PREDICTIONS}: 500 bytes, expected {len(whole)}. " in said
    assert f"restore it, or remove the folder {store.uri(folder)} and execute the run again" in said
    assert "Traceback" not in said
