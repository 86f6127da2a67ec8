"""The images under test, built when a test first asks for them; what was built before is taken from the cache."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from docml_assets.cli.image import image as image_command
from tests.image.engine import Engine, build_base, find_engine


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    found = find_engine()
    yield found
    found("image", "prune", "--force")


@pytest.fixture(scope="session")
def base(engine: Engine) -> str:
    return build_base(engine)


@pytest.fixture(scope="session")
def build_image(engine: Engine, base: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Builds the image of an experiment's folder with `docml image build`; the tag."""
    commands = tmp_path_factory.mktemp("commands")
    engine.write_docker(commands)

    def build(folder: Path) -> str:
        tag = f"localhost/docml-test:{folder.name.lower()}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
            patch.setenv("DOCML_EXPERIMENTS", str(folder.parent))
            patch.setenv("DOCML_IMAGE", tag)
            done = CliRunner().invoke(image_command, ["build", folder.name, "--base", base])
        assert done.exit_code == 0, f"{done.output}\n{done.exception}"
        return tag

    return build
