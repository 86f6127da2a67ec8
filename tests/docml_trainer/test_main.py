"""The entry point: exit codes and the reasons that failed jobs leave."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from docml_trainer import __main__ as entry
from docml_trainer import prepare
from docml_trainer.errors import DataError
from tests.docml_trainer.jobfolder import TRAINER_IMAGE


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


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(0)])
def test_who_ends_the_job_from_within_is_told_what_to_do_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    def end(folders: object) -> None:
        raise raised

    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    monkeypatch.setattr(prepare, "main", end)
    assert entry.main(["prepare"]) == 1
    reason = (tmp_path / "output/message").read_text()
    assert "ended the job; a function that cannot go on raises an Exception" in reason


def test_an_interrupt_from_outside_is_a_signal_like_others(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time, types\n"
        "def main(folders):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "sys.modules['docml_trainer.prepare'] = types.SimpleNamespace(main=main)\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{TRAINER_IMAGE}", "SAGEMAKER_BASE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "docml_trainer", "prepare"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        said, traceback = process.communicate(timeout=60)
    assert (process.returncode, said, traceback) == (-signal.SIGINT, "", "")
    assert not (tmp_path / "output").exists(), "no reason: what killed it is not of its own doing"
