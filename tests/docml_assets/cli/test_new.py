from pathlib import Path

import pytest
from click.testing import CliRunner

from docml_assets.cli import cli, main


def test_new_writes_a_folder_and_says_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCML_EXPERIMENTS", str(tmp_path / "here"))
    result = CliRunner().invoke(cli, ["new", "EXP-5"])
    assert result.exit_code == 0
    assert "docml validate EXP-5" in result.output
    assert sorted(path.name for path in (tmp_path / "here" / "EXP-5").iterdir()) == [
        "settings.ini",
        "user_defined_funcs.py",
    ]


def test_the_default_place_is_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCML_EXPERIMENTS", raising=False)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["new", "EXP-5", "--model", "roberta-base"])
    assert result.exit_code == 0
    assert result.output.startswith(f"{tmp_path.resolve() / 'experiments' / 'EXP-5'}: wrote settings.ini and")
    assert "roberta-base" in (tmp_path / "experiments" / "EXP-5" / "settings.ini").read_text()


@pytest.mark.parametrize("name", ["a b", "../EXP", "EXP-5"])
def test_what_cannot_be_made_is_one_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCML_EXPERIMENTS", str(tmp_path))
    (tmp_path / "EXP-5").mkdir()
    with pytest.raises(SystemExit) as exit_:
        main(["new", name])
    assert exit_.value.code == 1
    assert capsys.readouterr().err.startswith("docml: ")
    assert [path.name for path in tmp_path.iterdir()] == ["EXP-5"]
