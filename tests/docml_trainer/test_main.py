"""The entry point: exit codes and the reasons that failed jobs leave."""

from pathlib import Path

import pytest

from docml_trainer import __main__ as entry
from docml_trainer import prepare
from docml_trainer.errors import DataError


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([]) == entry.main(["tune"]) == 2
    assert "prepare|train|infer" in capsys.readouterr().err


def test_a_known_error_is_one_clear_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    assert entry.main(["prepare"]) == 1
    reason = (tmp_path / "output/failure").read_text()
    assert reason.startswith(str(tmp_path / "processing/input/spec/spec.json"))
    assert "Traceback" not in reason


@pytest.mark.parametrize(("error", "detailed"), [(DataError("no rows"), False), (ZeroDivisionError("by zero"), True)])
def test_an_unknown_error_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, detailed: bool
) -> None:
    def fail(folders: object) -> None:
        raise error

    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    monkeypatch.setattr(prepare, "main", fail)
    assert entry.main(["prepare"]) == 1
    reason = (tmp_path / "output/message").read_text()
    assert reason.startswith("ZeroDivisionError: by zero" if detailed else "no rows")
    assert ("Traceback" in reason) == detailed
