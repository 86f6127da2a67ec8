"""The bundled experiment on the local SageMaker service, every job in the image that `docml image build` makes for it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from docml_assets.cli import main
from resources.jobs.sagemaker import backend
from tests.distros.test_readme_commands import check_scores
from tests.image.container import Container
from tests.image.engine import ROOT, Engine
from tests.resources.jobs.cloud import HURRY, cloud
from tests.servers.s3 import S3Server

EXPERIMENT = "EXP-1-state-of-the-union"


def docml(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0


@pytest.mark.image
@pytest.mark.timeout(3600)
def test_the_demo_in_the_cloud(
    tmp_path: Path,
    s3_server: S3Server,
    engine: Engine,
    build_image: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = build_image(ROOT / "experiments" / EXPERIMENT)
    container = Container(engine, image, user=1000, read_only=True)
    for name in ("calls_a_second", "log_calls_a_second", "poll_seconds", "log_settle_seconds"):
        monkeypatch.setattr(backend, name.upper(), HURRY[name])
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    with cloud(tmp_path / "machines", s3_server, container.entrypoint(), containers=variables) as running:
        for key, value in {
            **running.environment,
            "DAGSTER_HOME": str(tmp_path / "home"),
            "DOCML_EXPERIMENTS": str(ROOT / "experiments"),
            "DOCML_ENV": "aws",
            "DOCML_STORE": running.store.url,
        }.items():
            monkeypatch.setenv(key, value)
        monkeypatch.chdir(tmp_path)
        docml("run", EXPERIMENT)
        docml("report", EXPERIMENT, "1")
        jobs = running.started()
    said = capsys.readouterr().out
    print(said)
    check_scores(said)
    assert len([job for job in jobs if "-training-" in job]) == 2
