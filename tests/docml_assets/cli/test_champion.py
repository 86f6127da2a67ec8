"""docml promote, champion and rollback; and `champion` in place of a run's number."""

from pathlib import Path

import pytest

from docml_assets.cli import main
from docml_assets.steps.preparation import run_preparation
from tests.docml_assets.steps.test_inference import whole
from tests.docml_assets.world import FakeJobs, World


@pytest.fixture
def promoted(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """Runs 1 and 2 are finished; run 1 is the champion."""
    for name, value in world.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    for number in (1, 2):
        world.write_experiment(hyperparameters={"epochs": number})
        work = world.work(world.claim(number), FakeJobs(world.store))
        whole(work)
        assert run_preparation(work) is not None
    assert docml("promote", "EXP-1", "1") == 0
    return world


def docml(*arguments: str) -> int:
    """The exit code of a command, run in this process."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_champion_is_promoted_shown_used_and_taken_back(promoted: World, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert docml("promote", "EXP-1", "2") == 0
    said = capsys.readouterr().out
    assert "run 2 small is not shown to be worse than run 1 small on 6 test documents of both" in said
    assert "EXP-1: run 2, small is the champion (entry 2)" in said
    assert docml("report", "EXP-1", "champion") == 0
    assert "EXP-1 run 2" in capsys.readouterr().out
    assert docml("rollback", "EXP-1") == 0
    assert "run 1, small is the champion again (entry 3)" in capsys.readouterr().out
    assert docml("champion", "EXP-1") == 0
    said = capsys.readouterr().out
    assert "EXP-1: run 1, small, since" in said
    assert "rollback" in said


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["promote", "EXP-1", "1"], 1, "is the champion of EXP-1 already"),
        (["promote", "EXP-1", "9"], 1, "run 9 is not claimed"),
        (["promote", "EXP-1", "2", "--model", "other"], 1, "has no model 'other', but small"),
        (["promote", "EXP-1", "2", "--force", " "], 2, "expected a reason"),
        (["rollback", "EXP-1"], 1, "has no earlier champion"),
        (["champion", "EXP-2"], 1, "EXP-2 has no champion"),
        (["report", "EXP-1", "first"], 2, "expected a run's number, or champion"),
        (["predict", "EXP-2", "champion", "--files", "."], 1, "EXP-2 has no champion"),
    ],
)
def test_what_is_wrong_is_said(
    promoted: World, arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert docml(*arguments) == code
    assert expected in " ".join(capsys.readouterr().err.split())
