"""A bare machine of a Debian release: a root made by `debootstrap` and entered in namespaces of its own.

Nothing of it outlives the process that made it, even killed: what is mounted or started there ends with its namespaces, and another process
waits for the end of this one to remove the folder.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
USER = "someone"
# Of pip's configuration, what says how packages are reached.
REACHING = re.compile(
    "(index-url|extra-index-url|find-links|no-index|trusted-host|proxy|cert|client-cert|constraint|timeout|default-timeout|retries)"
)
HOST = "/run/host"  # where the files of this machine that pip needs are, on the bare one
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
# A signal of the parent's death at each step, so that a killed test leaves no process, and so no namespace and no mount.
NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)


class BareMachine:
    """A root; `run` runs a command there as a user would, in the user's home."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._variables, self._paths = pip_settings()
        self._variables |= {name: os.environ[name] for name in PROXIES if name in os.environ}

    def run(self, command: str, *, user: str = USER, network: bool = True, timeout: float = 600) -> str:
        """What the command said, both streams together. AssertionError with its end if it failed."""
        if not network:
            command_line = [*NAMESPACES, "--net", "sh", "-c", 'ip link set lo up && exec sh "$@"', "sh"]
        else:
            command_line = [*NAMESPACES, "sh"]
        variables = "\n".join(f"{name}={value}" for name, value in self._variables.items())
        done = subprocess.run(
            [*command_line, str(Path(__file__).with_name("enter.sh")), str(self._folder), user, command, variables]
            + [str(path) for path in self._paths],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout[-8000:]}"
        return done.stdout

    def copy_checkout(self, name: str) -> None:
        """Put the files of this checkout, changed and new ones included, into a folder of the user's home."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        target = self._folder / "home" / USER / name
        for file in map(os.fsdecode, listed.stdout.split(b"\0")):
            if file and (ROOT / file).exists():
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, target / file)
        self.run(f"chown -R {USER}: /home/{USER}", user="root")


@contextmanager
def bare_machine(release: str, folder: Path) -> Iterator[BareMachine]:
    """A machine with what Debian calls essential, and one user; the folder is gone afterwards."""
    missing = [name for name in ("debootstrap", "ip", "setpriv", "unshare") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        raise RuntimeError(
            f"A bare machine is made as root, with {', '.join(missing) or 'debootstrap'}: found user {os.geteuid()}"
            f"{' and no such command' if missing else ''}; apt-get install debootstrap debian-archive-keyring iproute2, then be root"
        )
    with removed_at_the_end(folder):
        made = subprocess.run(
            [*NAMESPACES, "debootstrap", "--variant=minbase", release, str(folder), *debian_mirror()],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise RuntimeError(f"debootstrap {release} failed: {made.stdout[-2000:]}{made.stderr[-2000:]}")
        machine = BareMachine(folder)
        machine.run(f"useradd --create-home --shell /bin/sh {USER}", user="root")
        yield machine


@contextmanager
def removed_at_the_end(folder: Path) -> Iterator[None]:
    """Remove the folder at the end of the block or of this process, whichever comes first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    script = 'cat; for second in $(seq 60); do rm -rf --one-file-system -- "$1" && exit; sleep 1; done; exit 1'
    remover = subprocess.Popen(["sh", "-c", script, "sh", str(folder)], stdin=subprocess.PIPE, start_new_session=True)
    assert remover.stdin is not None
    try:
        yield
    finally:
        remover.stdin.close()
        assert remover.wait() == 0, f"{folder} could not be removed"


def debian_mirror() -> list[str]:
    """The mirror this machine takes Debian's packages from, as debootstrap's argument; without one it takes its own."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Label: Debian", "Created-By: Packages"]
    listed = (
        subprocess.run(command, capture_output=True, text=True, check=False).stdout if shutil.which("apt-get") else ""
    )
    return [uri.rstrip("/") for uri in listed.split()[:1]]


def pip_settings() -> tuple[dict[str, str], list[Path]]:
    """How this machine's pip reaches packages: variables for the pip of a bare machine, and the paths they name below HOST."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return variables_and_paths(listed)


def variables_and_paths(listed: str) -> tuple[dict[str, str], list[Path]]:
    """The same, of what `pip config list` said: lines such as global.index-url='…', those of the environment weigh most."""
    variables: dict[str, str] = {}
    paths: dict[Path, None] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        matched = re.fullmatch(r"([a-z:]+)\.([a-z-]+)=(.+)", line)
        if matched and REACHING.fullmatch(matched[2]):
            words = ast.literal_eval(matched[3]).split()
            variables[f"PIP_{matched[2].upper().replace('-', '_')}"] = " ".join(map(_on_the_machine, words))
            # The pages of an index link to files beside their folder.
            found = [path.parent if matched[2].endswith("index-url") else path for path in map(_path, words) if path]
            paths.update(dict.fromkeys(found))
    return variables, list(paths)


def _path(word: str) -> Path | None:
    path = Path(unquote(urlsplit(word).path) if word.startswith("file:") else word)
    return path if path.is_absolute() and path.exists() else None


def _on_the_machine(word: str) -> str:
    path = _path(word)
    return word.replace(str(path), f"{HOST}{path}") if path else word
