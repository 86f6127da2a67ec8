"""A container as SageMaker starts one: literal /opt/ml, the entry point as PID 1, and no more than it is allowed.

As a program it stands for an image's ENTRYPOINT in the local SageMaker service: the folder of the job becomes the container's /opt/ml,
the variables of the process the container's, and the process itself the engine's client, which hands signals on to PID 1.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.image.engine import Engine

# Of the process that starts the container, not of the job; that the trainer needs none of them is what is to be shown.
NOT_OF_THE_JOB = frozenset({"PATH", "HOME", "SAGEMAKER_BASE_DIR", "PYTHONPATH", "PYTHONUNBUFFERED", "LC_CTYPE", "PWD"})


@dataclass(frozen=True)
class Container:
    """An image and what it is allowed. SageMaker's containers are root's and may write, and isolated ones have no network."""

    engine: Engine
    image: str
    user: int = 0
    read_only: bool = False

    def run(self, base: Path, environment: Mapping[str, str], *command: str, name: str = "") -> list[str]:
        """The command line that runs a command; the folder belongs to the container's user from now on."""
        subprocess.run(["chown", "-R", f"{self.user}:{self.user}", str(base)], check=True)
        network = (
            "host" if command == ("serve",) else "none"
        )  # the local service asks a server at a port of this machine
        words = ["--rm", "--network", network, "--user", f"{self.user}:{self.user}", "--volume", f"{base}:/opt/ml"]
        words += ["--name", name or f"docml-{uuid.uuid4().hex[:12]}"]
        words += ["--read-only", "--tmpfs", "/tmp:rw,mode=1777"] if self.read_only else []
        words += [f"--env={key}={value}" for key, value in environment.items() if key not in NOT_OF_THE_JOB]
        return [*self.engine.command, "run", *self.engine.to_run, *words, self.image, *command]

    def entrypoint(self) -> tuple[str, ...]:
        """The command that stands for the image's ENTRYPOINT in the local service."""
        return (sys.executable, "-m", "tests.image.container", json.dumps(asdict(self)))


def main(description: str, command: Sequence[str]) -> None:
    """Become the engine's client."""
    given = json.loads(description)
    container = Container(**given | {"engine": Engine(**given["engine"])})
    line = container.run(Path(os.environ["SAGEMAKER_BASE_DIR"]), os.environ, *command)
    os.execvp(line[0], line)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
