"""Every command of the image in containers: what it makes, what it is allowed, and how it ends."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from docml_assets.cli.endpoints import deploy, undeploy
from docml_assets.experiment.scaffold import new_experiment
from docml_contract import names
from resources.endpoints.sagemaker import backend as hosting
from resources.jobs.sagemaker import backend
from resources.store import Store
from tests.docml_contract.test_seclude import CANARY
from tests.image.container import Container
from tests.image.engine import ROOT, Engine
from tests.resources.jobs.cloud import HURRY, Cloud, cloud
from tests.servers.s3 import S3Server
from tests.test_canaries import FUNCTIONS, watch_functions, write_credentials
from tests.test_cloud_graph import EXPERIMENT, report, run, versions

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]
STOPPED = 143
MODEL = "averaged-words"
SETTINGS = "INFERENCE_IN_TRAINING = false\nTUNING_STRATEGY = Random\nMAX_JOBS = 2\nMAX_PARALLEL_JOBS = 1"
STRICT = {"user": 1000, "read_only": True}


@dataclass(frozen=True)
class World:
    """An experiment whose run 1 was done in containers that may do nothing, and a cloud that goes on."""

    root: Path
    container: Container
    cloud: Cloud

    @property
    def store(self) -> Store:
        return self.cloud.store

    def laid_out(self, step: str, folder: Path, **hyperparameters: str) -> Path:
        """An /opt/ml as the job of a step of run 1 had it, before it began."""
        (made,) = self.root.glob(f"machines/*/{EXPERIMENT}-r1-{step}-*/algo-1")
        shutil.copytree(made, folder)
        for left in ("model", "output", "checkpoints", "processing/output"):
            shutil.rmtree(folder / left, ignore_errors=True)
        for given in ("output", "processing/output/result" if "processing" in made.parts[-3] else "checkpoints"):
            (folder / given).mkdir(parents=True)
        if hyperparameters:
            path = folder / "input/config/hyperparameters.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | hyperparameters))
        return folder


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server, engine: Engine, build_image: Callable[[Path], str]
) -> Iterator[World]:
    root = tmp_path_factory.mktemp("world")
    experiment = root / "experiments" / EXPERIMENT
    new_experiment(experiment, None)
    settings = experiment / "settings.ini"
    text = settings.read_text().replace("epochs = 10", "epochs = 2").replace("max_words = 2000", "max_words = 200")
    settings.write_text(text.replace("RUN_NUM = 1", f"RUN_NUM = 1\n{SETTINGS}"))
    write_credentials(root / "home-of-somebody")
    watch_functions(experiment, root / "home-of-somebody")
    container = Container(engine, build_image(experiment), **STRICT)
    entrypoint = root / "entrypoint"
    write_entrypoint(entrypoint, container)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("calls_a_second", "log_calls_a_second", "poll_seconds", "log_settle_seconds"):
            patch.setattr(backend, name.upper(), HURRY[name])
        patch.setattr(hosting, "CALLS_A_SECOND", 0.0)
        patch.setattr(hosting, "POLL_SECONDS", 0.2)
        with cloud(root / "machines", s3_server, (str(entrypoint),), grace=60) as running:
            for key, value in {
                **running.environment,
                "DAGSTER_HOME": str(root / "home"),
                "DOCML_EXPERIMENTS": str(root / "experiments"),
                "OMP_NUM_THREADS": "1",
                "HOME": str(root / "home-of-somebody"),
                "MY_SECRET": CANARY,
                "DOCML_ENV": "aws",
                "DOCML_STORE": running.store.url,
            }.items():
                patch.setenv(key, value)
            run("aws", running.store.url)
            yield World(root, container, running)


def write_entrypoint(path: Path, container: Container) -> None:
    """The command that stands for the image's ENTRYPOINT from now on."""
    python, *arguments = container.entrypoint()
    quoted = " ".join(f"'{word}'" for word in arguments)
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {python} {quoted} "$@"\n')
    path.chmod(0o755)


def test_outputs_are_those_of_the_local_twin(world: World) -> None:
    home = run("local", f"{world.store.url}-home")
    made = versions(world.store, 1)
    assert made == versions(home, 1)
    assert {"preparation", f"training/{MODEL}", "inference"} <= made.keys()
    assert report(world.store, 1) == report(home, 1)


def test_no_function_of_an_experiment_finds_a_credential(world: World) -> None:
    """They look in the containers, where they are no root: one that finds any fails its job."""
    log = str(world.cloud.endpoint.logs.groups)
    assert {name for name in FUNCTIONS if f"looked in {name}" in log} == set(FUNCTIONS) - {"process_func"}
    assert any(stored.key.endswith("/looked.txt") for stored in world.store.list(f"{EXPERIMENT}/data"))
    assert CANARY not in log
    assert CANARY not in str(world.cloud.endpoint.calls)


def test_the_trials_of_a_tuning(world: World) -> None:
    """As root, with a root folder that may be written, as SageMaker runs them."""
    write_entrypoint(world.root / "entrypoint", replace(world.container, user=0, read_only=False))
    run("aws", world.store.url, "--next", "--steps", "reconciliation,preparation,tuning,inference")
    (key,) = [
        stored.key for stored in world.store.list(EXPERIMENT) if stored.key.endswith(f"tuning/{MODEL}/trials.json")
    ]
    assert [trial["status"] for trial in json.loads(world.store.get(key))["trials"]] == ["Completed"] * 2


def test_a_server_answers_and_ends(world: World) -> None:
    """`docml deploy` compares its answers with the report's."""
    write_entrypoint(world.root / "entrypoint", world.container)
    done = CliRunner().invoke(deploy, [EXPERIMENT, "1"])
    assert done.exit_code == 0, f"{done.output}\n{done.exception}"
    done = CliRunner().invoke(undeploy, [f"1-{EXPERIMENT}-{MODEL}"])
    assert done.exit_code == 0, f"{done.output}\n{done.exception}"


@dataclass
class Running:
    """A container, and what it has said."""

    process: subprocess.Popen[str]
    pid: int
    said: str = ""

    def wait_for(self, text: str) -> None:
        assert self.process.stdout is not None
        while text not in self.said:
            line = self.process.stdout.readline()
            assert line, f"ended before it said {text!r}:\n{self.said}"
            self.said += line

    def end(self, seconds: float = 900) -> int:
        """Its exit code, once it has ended by itself."""
        said, _ = self.process.communicate(timeout=seconds)
        self.said += said
        return self.process.returncode

    def status(self, field: str) -> list[str]:
        """A line of the state of PID 1, as this machine's kernel sees it."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.split()[1:] for line in lines if line.startswith(f"{field}:"))

    def wait_until_it_hears(self) -> None:
        """Until PID 1 has a handler for SIGTERM: before that the kernel drops the signal."""
        while not int(self.status("SigCgt")[0], 16) & 1 << signal.SIGTERM - 1:
            assert self.process.poll() is None, self.said
            time.sleep(0.01)


@contextmanager
def started(container: Container, base: Path, command: str) -> Iterator[Running]:
    """A container that runs; it does not outlive the block."""
    name = f"docml-test-{os.getpid()}-{time.monotonic_ns()}"
    environment = {"OMP_NUM_THREADS": "1", "AWS_REGION": "us-east-1"}
    line = container.run(base, environment, command, name=name)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            pid = 0
            while not pid and process.poll() is None:
                asked = [*container.engine.command, "inspect", "--format", "{{.State.Pid}}", name]
                told = subprocess.run(asked, capture_output=True, text=True, check=False)
                pid = int(told.stdout.strip() or 0) if told.returncode == 0 else 0
            yield Running(process, pid)
        finally:
            subprocess.run([*container.engine.command, "kill", name], capture_output=True, check=False)
            process.kill()


@pytest.mark.parametrize("allowed", [{"user": 0, "read_only": False}, STRICT], ids=["root", "a user"])
def test_a_training_is_stopped_and_resumed(world: World, tmp_path: Path, allowed: dict[str, int]) -> None:
    container = replace(world.container, **allowed)
    base = world.laid_out("training", tmp_path / "ml", epochs="60")
    with started(container, base, "train") as running:
        running.wait_for("docml: valid_f1=")
        check_confinement(running, container)
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == STOPPED, running.said
        assert "Stopped by SIGTERM after a checkpoint at epoch" in running.said
    assert not (base / "model" / names.OUTPUT).exists()
    assert not (base / "output/failure").exists()
    with started(container, base, "train") as running:
        assert running.end() == 0, running.said
        assert "Resumed from step-" in running.said
    assert (base / "model" / names.OUTPUT).is_file()


def check_confinement(running: Running, container: Container) -> None:
    """PID 1 is the trainer, of its user, without a network, and its root folder is what it was made to be."""
    proc = Path(f"/proc/{running.pid}")
    assert running.status("NSpid")[-1] == "1"
    assert proc.joinpath("cmdline").read_text().split("\0")[1:4] == ["-m", "docml_trainer", "train"]
    assert running.status("Uid")[0] == str(container.user)
    mounts = {
        line.split()[4]: line.split()[5].split(",") for line in proc.joinpath("mountinfo").read_text().splitlines()
    }
    assert ("ro" if container.read_only else "rw") in mounts["/"]
    assert "rw" in mounts["/opt/ml"]
    devices = proc.joinpath("net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]


@pytest.mark.parametrize("step", ["preparation", "inference"])
def test_other_jobs_end_at_once(world: World, tmp_path: Path, step: str) -> None:
    command = {"preparation": "prepare", "inference": "infer"}[step]
    with started(world.container, world.laid_out(step, tmp_path / "ml"), command) as running:
        running.wait_until_it_hears()
        running.process.send_signal(signal.SIGTERM)
        assert running.end(60) == STOPPED, running.said


@pytest.mark.parametrize(
    ("step", "command", "file"), [("training", "train", "failure"), ("preparation", "prepare", "message")]
)
def test_the_reason_of_a_failure(world: World, tmp_path: Path, step: str, command: str, file: str) -> None:
    base = world.laid_out(step, tmp_path / "ml")
    (spec,) = base.rglob(names.SPEC)
    spec.unlink()
    with started(world.container, base, command) as running:
        assert running.end() == 1, running.said
    reason = (base / "output" / file).read_text()
    assert reason.startswith(f"{'/opt/ml' / spec.relative_to(base)}: no such file")


def test_the_base_keeps_its_tools(world: World, engine: Engine) -> None:
    """What docml does not need newer stays as the base has it, and what it installs fits together."""
    container = [*engine.command, "run", "--rm", "--network", "none", *engine.to_run, "--entrypoint", "python"]

    def python(image: str, *words: str) -> str:
        return subprocess.run([*container, image, *words], capture_output=True, text=True, check=True).stdout

    listed = python(world.container.image, "-m", "pip", "list", "--format", "freeze").splitlines()
    assert {"PyYAML==6.0.2", "toolz==1.0.0"} <= set(listed)
    torch = "import torch; print(torch.__version__)"
    assert python(world.container.image, "-c", torch) == python("localhost/docml-test-base", "-c", torch)
    assert "No broken requirements found" in python(world.container.image, "-m", "pip", "check")
