"""The group: quick to help, one message for what is wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from docml_assets.cli import COMMANDS, cli, main
from docml_contract.names import RunPlace

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_explains_itself(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    assert "Usage:" in shown.output


def test_help_loads_neither_dagster_nor_the_commands() -> None:
    code = (
        "import sys; from docml_assets.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('dagster', 'pyarrow', 'pydantic', 'docml_assets.cli.run') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_look_at_runs_does_not_load_dagster(tmp_path: Path) -> None:
    code = (
        "import sys; from docml_assets.cli import cli; cli.main(['runs'], standalone_mode=False); "
        "print([name for name in ('dagster', 'torch', 'pandas', 'scipy') if name in sys.modules])"
    )
    variables = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'trainer_image'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=variables
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("docml runs > /dev/full", 1),
        ("docml --help > /dev/full", 1),
        ("docml runs >&-", 0),
        ("docml runs <&- >&- 2>&-", 0),
    ],
)
def test_output_that_cannot_be_written_is_one_message(tmp_path: Path, command: str, code: int) -> None:
    variables = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'trainer_image'}"}
    script = f"""docml() {{ "{sys.executable}" -c "from docml_assets.cli import main; main()" "$@"; }}; {command}"""
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path, env=variables
    )
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert lines == [] if code == 0 else len(lines) == 1
    assert code == 0 or "cannot be written to where stdout leads (No space left on device)" in lines[0]


def test_unknown_commands_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["cook"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "No such command" in said
    assert "mean" not in said
    with pytest.raises(SystemExit):
        main(["reprot"])
    assert "Did you mean report?" in capsys.readouterr().err


def test_the_shell_completes_as_the_readme_has_it(tmp_path: Path) -> None:
    for name in ("EXP-1-first", "EXP-2-second"):
        (tmp_path / "experiments" / name).mkdir(parents=True)
        (tmp_path / "experiments" / name / "settings.ini").touch()
    for run in (2, 10):
        key = tmp_path / "storage" / RunPlace("EXP-2-second", run).claim
        key.parent.mkdir(parents=True)
        key.write_text("{}")
    (line,) = re.findall('`(eval "[^`]*_DOCML_COMPLETE=bash_source[^`]*)`', (REPOSITORY / "README.md").read_text())
    tries = (
        "docml ru",
        "docml run EXP-1 --st",
        "docml image p",
        "docml validate EXP-2",
        "docml report EXP-2-second ''",
        "docml compare EXP-1-first 1 EXP-2-second 1",
    )
    asked = "; ".join(
        f"COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; _docml_completion docml; echo ${{COMPREPLY[*]}}; COMPREPLY=()"
        for words in tries
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{line}; {asked}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
    )
    assert done.stdout.splitlines() == ["run runs", "--steps", "push", "EXP-2-second", "10 2 champion", "10"]
