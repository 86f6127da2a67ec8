"""A folder with its own store, Dagster home and one experiment, in which docml is called as a person calls it."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import dagster as dg
import pytest

from docml_assets.cli import main
from docml_assets.dagster_internals import checks_of, unevaluated_checks
from docml_assets.definitions import defs
from docml_assets.deployment import SAMPLE
from docml_assets.execution import JOB

REPOSITORY = Path(__file__).parents[3]
DOCML = [sys.executable, "-c", "from docml_assets.cli import main; main()"]


class Here:
    """A folder with its own store, Dagster home and one experiment: what `docml new` makes, or a copy of `content`.

    production: where its documents' files lie.
    """

    def __init__(self, root: Path, experiment: str = "EXP-7-words", content: Path | None = None) -> None:
        self.root = root
        self.experiment = experiment
        self.production = SAMPLE / "artifacts"
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'trainer_image'}",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
        }
        for name in [name for name in self.environment if name.startswith(("DOCML_", "DAGSTER_"))]:
            del self.environment[name]
        if content is None:
            self.docml("new", experiment)
            self.set(epochs="2")
        else:
            shutil.copytree(content, self.root / "experiments" / experiment)

    @property
    def settings(self) -> Path:
        return self.root / "experiments" / self.experiment / "settings.ini"

    def set(self, **values: str) -> None:
        text = self.settings.read_text()
        for key, value in values.items():
            text, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text, count=1)
            assert count == 1, key
        self.settings.write_text(text)

    def docml(self, *arguments: str, code: int = 0) -> str:
        """Standard output and error of a command that must end with `code`."""
        done = subprocess.run(
            [*DOCML, *arguments],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def ask(self, *arguments: str, code: int = 0) -> str:
        """The same in this process: for commands that start no job, where another process would take most of the time."""
        out, err = StringIO(), StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.root)
            for name in [name for name in os.environ if name.startswith(("DOCML_", "DAGSTER_"))]:
                patch.delenv(name)
            with pytest.raises(SystemExit) as ended:
                main(arguments)
        assert ended.value.code == code, out.getvalue() + err.getvalue()
        return out.getvalue() + err.getvalue()

    def jobs(self, run: int) -> list[str]:
        folder = self.root / f"storage/{self.experiment}/run_{run}/jobs"
        return sorted(path.stem for path in folder.glob("*.json") if "." not in path.stem)

    def version(self, folder: str) -> str:
        manifest = json.loads((self.root / "storage" / self.experiment / folder / "MANIFEST.json").read_text())
        version: str = manifest["data_version"]
        return version

    def unevaluated(self, run: int) -> list[dg.AssetCheckKey]:
        """The checks that have no finding of what the run made last."""
        with dg.DagsterInstance.from_config(str(self.root / ".dagster_home")) as instance:
            return unevaluated_checks(instance, checks_of(defs.resolve_job_def(JOB)), f"{self.experiment}|{run}")

    def statuses(self) -> list[dg.DagsterRunStatus]:
        """Of all Dagster runs, newest first."""
        with dg.DagsterInstance.from_config(str(self.root / ".dagster_home")) as instance:
            return [run.status for run in instance.get_runs()]
