"""A container engine: Docker where its daemon answers, else Podman, whose builds are Buildah's, with a storage of its own.

DOCML_IMAGE_CACHE     where Podman keeps images between runs (~/.cache/docml/images); some 6 GB
"""

import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.distros.bare_machine import HOST, NAMESPACES, debian_mirror, pip_settings
from tests.distros.pins import read_lock

ROOT = Path(__file__).resolve().parents[2]
RELEASES = {
    (3, 11): "bookworm",
    (3, 13): "trixie",
}  # of Debian: the one with this Python, for outputs that are to be equal
PACKAGES = ("python3", "python3-venv", "ca-certificates", "libgomp1")
BASE = "localhost/docml-test-base"
RUN_STATE = Path("/run/docml-images")  # what does not outlive the machine's start


@dataclass(frozen=True)
class Engine:
    """One command line for both: `docker` and `podman` take the same words."""

    command: tuple[str, ...]  # with the options that come before every word
    to_build: tuple[str, ...] = ()
    to_run: tuple[str, ...] = ()

    def __call__(self, *words: str, timeout: float = 600) -> str:
        """What the engine said on its standard output; AssertionError with all it said if it failed."""
        done = subprocess.run([*self.command, *words], capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, (
            f"{shlex.join(words)}: exit status {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
        return done.stdout

    def build(self, dockerfile: Path, tag: str, context: Path, **arguments: str) -> None:
        """Build a tag; layers that are known are taken."""
        given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        self("build", *self.to_build, "--file", str(dockerfile), *given, "--tag", tag, str(context), timeout=3600)

    def write_docker(self, folder: Path) -> None:
        """A command `docker` in a folder that is this engine, for `docml image`."""
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "docker"
        build = shlex.join([*self.command, "build", *self.to_build])
        script.write_text(
            f'#!/bin/sh\n[ "$1" = build ] && shift && exec {build} "$@"\nexec {shlex.join(self.command)} "$@"\n',
            encoding="utf-8",
        )
        script.chmod(0o755)

    def has(self, tag: str) -> bool:
        """Whether there is such an image."""
        words = [*self.command, "image", "inspect", tag]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0


def find_engine() -> Engine:
    """Docker if its daemon answers, else Podman; RuntimeError says what is missing."""
    answers = shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False)
    missing = [name for name in ("debootstrap", "setpriv", "unshare") if shutil.which(name) is None]
    if not (answers and answers.returncode == 0):
        missing += [name for name in ("podman", "runc") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        raise RuntimeError(
            f"Images are built and run as root, with Docker or with podman and runc: found user {os.geteuid()}, and no "
            f"{', '.join(missing) or 'right to'}; apt-get install debootstrap debian-archive-keyring podman runc, then be root"
        )
    shared = ("--shm-size", "1g")
    if answers and answers.returncode == 0:
        return Engine(("docker",), to_run=shared)
    storage = cache() / "storage"
    storage.mkdir(parents=True, mode=0o700, exist_ok=True)
    command = (
        *("podman", "--root", str(storage), "--runroot", str(RUN_STATE / "run"), "--tmpdir", str(RUN_STATE / "tmp")),
        *(
            "--storage-driver",
            "overlay",
            "--runtime",
            "runc",
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "none",
        ),
    )
    # Podman asks for more than root may have where it lacks CAP_SYS_RESOURCE, unless it is told.
    limits = {"nofile": (resource.RLIMIT_NOFILE, 16_384), "nproc": (resource.RLIMIT_NPROC, 4_096)}
    asked = []
    for name, (number, enough) in limits.items():
        hard = resource.getrlimit(number)[1]
        count = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
        asked += ["--ulimit", f"{name}={count}:{count}"]
    folders = [path for path in pip_settings()[1] if path.is_dir()]
    return Engine(
        command,
        to_build=("--isolation", "chroot", "--layers", *(f"--volume={path}:{HOST}{path}:ro" for path in folders)),
        to_run=(*shared, *asked),
    )


def cache() -> Path:
    """The folder that keeps what is slow to make."""
    return Path(os.environ.get("DOCML_IMAGE_CACHE") or Path.home() / ".cache/docml/images").resolve()


def build_base(engine: Engine) -> str:
    """A base image with torch, made from Debian's packages; the tag."""
    release = RELEASES.get(sys.version_info[:2], "trixie")
    root = f"localhost/docml-test-root:{release}"
    if not engine.has(root):
        import_root(engine, release, root)
    with tempfile.TemporaryDirectory() as name:
        context = Path(name)
        variables, paths = pip_settings()
        write_pip_configuration(context, variables, paths)
        (context / "constraints.txt").write_text("\n".join(read_lock("dev")), encoding="utf-8")
        arguments = {"ROOT": root, "TORCH_INDEX": os.environ.get("TORCH_INDEX", "")}
        engine.build(Path(__file__).with_name("base.Dockerfile"), BASE, context, **arguments)
    return BASE


def import_root(engine: Engine, release: str, tag: str) -> None:
    """An image of nothing but a release's packages."""
    with tempfile.TemporaryDirectory(dir=cache()) as name:
        folder = Path(name) / "root"
        command = [
            *NAMESPACES,
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            release,
            str(folder),
        ]
        done = subprocess.run([*command, *debian_mirror()], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"debootstrap {release}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        archive = Path(name) / "root.tar"
        left_out = [
            f"--exclude=./{path}" for path in ("var/cache/apt/*", "var/lib/apt/lists/*", "proc/*", "sys/*", "dev/*")
        ]
        subprocess.run(["tar", "-C", str(folder), *left_out, "-cf", str(archive), "."], check=True)
        engine("import", str(archive), tag)


def write_pip_configuration(context: Path, variables: Mapping[str, str], paths: Sequence[Path]) -> None:
    """pip.conf, and below host/ the files that it names. Folders can be shown to a build, and copied nowhere."""
    lines = [f"{name.removeprefix('PIP_').lower().replace('_', '-')} = {value}" for name, value in variables.items()]
    (context / "pip.conf").write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
    (context / "host").mkdir()
    for path in paths:
        if path.is_file():
            target = context / "host" / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
