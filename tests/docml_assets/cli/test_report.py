"""docml report over a real store."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from docml_assets.cli.report import compare, report
from docml_assets.errors import ReportError
from docml_assets.report.comparison import read_run
from docml_assets.report.schema import read_report
from docml_assets.tables import parquet_bytes, read_parquet
from docml_contract.base import IncompleteArtifact
from docml_contract.names import PREDICTIONS, REPORT_JSON, RunPlace
from resources.store import Store
from tests.docml_assets.cli.finished import store_with_two_runs


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("DOCML_STORE", str(tmp_path / "storage"))
    monkeypatch.setenv("COLUMNS", "160")
    return store_with_two_runs(tmp_path / "storage")


def test_report(store: Store) -> None:
    result = CliRunner().invoke(report, ["EXP-a", "1"], catch_exceptions=False)
    assert result.exit_code == 0
    for said in (
        "EXP-a run 1",
        "On 200 unseen documents of 4 labels, tiny reaches a macro-F1 of 0.",
        "Scores on 200 test documents",
        "F1 by label",
        "tiny is better",
        "120.5",
        "7.2 ms",
    ):
        assert said in result.output
    assert store.uri("EXP-a/run_1/inference/report.html") in result.output.replace("\n", "")


def test_a_run_without_a_report(store: Store) -> None:
    with pytest.raises(
        ReportError, match=r"EXP-a run 2 has no finished inference report .*: finish it with docml run EXP-a --run 2"
    ):
        read_report(store, RunPlace("EXP-a", 2))


def test_reading_a_run_back(store: Store) -> None:
    run = read_run(store, RunPlace("EXP-a", 1))
    assert (run.experiment, run.run, run.read().models) == ("EXP-a", 1, ("tiny", "large"))


@pytest.mark.parametrize("arguments", [[], ["EXP-a"], ["EXP-a", "0"], ["EXP-a", "x"]])
def test_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(report, arguments).exit_code == 2


@pytest.mark.parametrize("file", [REPORT_JSON, PREDICTIONS])
def test_one_wrong_figure_is_never_shown(store: Store, file: str) -> None:
    place = RunPlace("EXP-a", 1)
    content = store.get(f"{place.inference}/{file}")
    if file == REPORT_JSON:
        changed = re.sub(
            rb'"accuracy": 0\.(\d)', lambda found: b'"accuracy": 0.%d' % (9 - int(found[1])), content, count=1
        )
    else:
        table = read_parquet(content)
        values = table["tiny_prediction"].to_pylist()
        changed = parquet_bytes(table.set_column(2, "tiny_prediction", [[values[1], *values[1:]]]))
    assert changed != content
    store.put(f"{place.inference}/{file}", changed)
    message = f"{file}: content differs .* remove the folder {store.uri(place.inference)}"
    for command, arguments in ((compare, ["EXP-a", "1", "EXP-b", "3"]), (report, ["EXP-a", "1"])):
        if command is report and file == PREDICTIONS:
            continue  # it shows what stands in report.json
        with pytest.raises(IncompleteArtifact, match=message):
            CliRunner().invoke(command, arguments, catch_exceptions=False)
