"""User code, run as the orchestrator runs it and by a user who is not root, finds none of the orchestrator's credentials."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from docml_contract import sandbox

CANARY = "CANARY-91ab"
# Looks wherever one looks: its own and its ancestors' environments, the memory of its parent, homes, the usual variables.
ATTACK = """
import glob, os, pathlib, pwd, urllib.request
def look(*homes, parent=True):
    found = [f"{key}={value}" for key, value in os.environ.items()]
    for path in glob.glob("/proc/[0-9]*/environ"):
        try: found.append(f"{path}: {pathlib.Path(path).read_text(errors='replace')}")
        except OSError: pass
    try: homes += (pwd.getpwuid(os.getuid()).pw_dir,)
    except KeyError: pass  # a user without an account, as containers have them
    for home in {*homes, os.path.expanduser("~")}:
        for name in (".aws/credentials", ".netrc", ".pgpass", ".config/pip/pip.conf", ".psql_history"):
            try: found.append((pathlib.Path(home) / name).read_text())
            except OSError: pass
    try: parent and open(f"/proc/{os.getppid()}/mem", "rb") and found.append("CANARY of the parent's memory")
    except OSError: pass
    try:
        import botocore.session
        found.append(str(botocore.session.Session().get_credentials()))
        found.append("CANARY" if botocore.session.Session().get_credentials() else "")
    except ImportError: pass
    return [each for each in found if "CANARY" in each]
"""
PROCESS_FUNC = (
    ATTACK
    + """
def process_func(artifact, directory):
    import json
    (directory / "found").write_text(json.dumps(look(artifact["home"])))
"""
)
ORCHESTRATOR = """
import os, sys, pathlib
from docml_contract.sandbox import Worker
folder = pathlib.Path(sys.argv[1])
worker = Worker(folder / "worker", (folder / "functions.py").read_text(), dict(os.environ))
outcome = worker.run({"home": os.environ["HOME"]}, folder)
worker.close()
sys.exit(outcome.error and f"{outcome.error} {outcome.traceback}")
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that another user can work in; pytest's own are closed to others."""
    made = Path(tempfile.mkdtemp(prefix="docml-trust-"))
    (made / "home").mkdir()
    for name in (".aws/credentials", ".netrc", ".pgpass", ".config/pip/pip.conf", ".psql_history"):
        (made / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (made / "home" / name).write_text(
            f"[default]\naws_access_key_id = {CANARY}\naws_secret_access_key = {CANARY}\n"
        )
    if os.getuid() == 0 and PYTHON:
        for path in [made, *made.rglob("*")]:
            os.chown(path, 65_534, 65_534)
    yield made
    shutil.rmtree(made)


# In a user namespace of its own root's files are this user's, and nothing else of root's is.
AS_ANOTHER = ("unshare", "--user", "--map-user=65534", "--map-group=65534", "--")


def python_for_others() -> str:
    """An interpreter of this version that every user can start; it may not be this one, which may lie in root's home."""
    for python in (sys.executable, "/usr/bin/python{}.{}".format(*sys.version_info)):
        real = Path(python).resolve()
        if real.exists() and all(path.stat().st_mode & 1 for path in (real, *real.parents)):
            return python
    return ""


PYTHON = python_for_others() if os.getuid() == 0 else sys.executable


def as_nobody(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run by a user who is not root; where none can start a Python, by one without root's rights who may read root's files."""
    nobody = {"user": 65_534, "group": 65_534, "extra_groups": []} if os.getuid() == 0 and PYTHON else {}
    if os.getuid() == 0 and not PYTHON:
        command = [*AS_ANOTHER, *command]
    return subprocess.run(
        command,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(folder / "home"),
            "AWS_ACCESS_KEY_ID": CANARY,
            "AWS_SECRET_ACCESS_KEY": CANARY,
            "DOCML_LABELS_URL": f"postgresql://docml:{CANARY}@db/labels",
            "WANDB_API_KEY": CANARY,
            **environment,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **nobody,  # type: ignore[call-overload]
    )


def secluded(command: list[str], folder: Path) -> list[str]:
    return [PYTHON or sys.executable, *sandbox.seclude(command, {"HOME": str(folder / "home")}, "none")[1:]]


def found_by_process_func(folder: Path) -> list[str]:
    (folder / "functions.py").write_text(PROCESS_FUNC)
    done = as_nobody([PYTHON or sys.executable, "-c", ORCHESTRATOR, str(folder)], folder)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads((folder / "found").read_text())
    return found


def test_process_func_finds_no_credential(folder: Path) -> None:
    assert found_by_process_func(folder) == []


def test_where_there_are_no_namespaces_other_environments_stay_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fallback, without the launcher's namespaces: what the orchestrator's own undumpability gives by itself.
    script = ORCHESTRATOR.replace(
        "folder = ",
        "from docml_contract import sandbox\nsandbox.seclude = lambda command, environment, network: command\nfolder = ",
    ).replace("from docml_contract.sandbox import Worker", "")
    script = script.replace("worker = Worker", "worker = sandbox.Worker")
    (folder / "functions.py").write_text(PROCESS_FUNC)
    done = as_nobody([PYTHON or sys.executable, "-c", script, str(folder)], folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "found").read_text())
    assert not [each for each in found if each.startswith("/proc/") or "memory" in each]


def test_a_program_that_runs_secluded_runs_as_itself(folder: Path) -> None:
    script = (
        "import os, signal, sys; print(os.getpid(), os.getuid(), os.getgid(), flush=True); os.kill(os.getpid(), 15)"
    )
    command = secluded([PYTHON or sys.executable, "-c", script], folder)
    done = as_nobody(command, folder)
    assert done.returncode == -15
    user = 65_534 if os.getuid() == 0 and PYTHON else os.getuid()
    assert done.stdout.split()[1] == str(user)


def test_no_privilege_is_gained_inside(folder: Path) -> None:
    script = (
        "import ctypes; print(ctypes.CDLL(None).umount(b'"
        + str(folder / "home/.aws")
        + "')); print(open('/proc/self/status').read())"
    )
    done = as_nobody(secluded([PYTHON or sys.executable, "-c", script], folder), folder)
    assert done.stdout.startswith("-1")
    assert "CapEff:\t0000000000000000" in done.stdout
    assert "NoNewPrivs:\t1" in done.stdout


def test_namespaces_within_uncover_nothing(folder: Path) -> None:
    """There, user code has every right, and cannot undo what was done outside."""
    home = folder / "home"
    uncover = f"umount {home}/.netrc; umount -l {home}/.aws; mount --rbind {home} {home}; umount -l /; cat {home}/.netrc {home}/.aws/credentials"
    done = as_nobody(
        secluded(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f"echo within; {uncover}"], folder),
        folder,
    )
    assert os.getuid() == 0 or done.stdout.startswith("within")
    assert CANARY not in done.stdout


def test_where_there_are_no_namespaces_it_runs_all_the_same_and_one_line_says_so() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import seclude\nseclude._enter = None\n"
        "seclude.main('none', [], [sys.executable, '-c', 'print(1)'])"
    )
    folder = str(Path(sandbox.__file__).parent)
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    (line,) = done.stderr.splitlines()
    assert "SECURITY.md" in line


def test_whether_there_are_namespaces_is_known() -> None:
    unshared = subprocess.run(["unshare", "--user", "--mount", "--net", "true"], capture_output=True, check=False)
    assert (sandbox.find_exposure() is None) == (unshared.returncode == 0)


def test_files_are_hidden_however_their_variables_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "deploy").mkdir()
    names = ("relative", "in-home", "first", "second", ".env", "deploy/.env")
    for name in names:
        (tmp_path / name).touch()
    environment = {
        "AWS_CONFIG_FILE": "relative",
        "AWS_SHARED_CREDENTIALS_FILE": "~/in-home",
        "KUBECONFIG": f"{tmp_path}/first:{tmp_path}/second",
        "NETRC": str(tmp_path / "nowhere"),
    }
    hidden = json.loads(sandbox.seclude(["true"], environment, "host")[5])
    assert {str(tmp_path / name) for name in names} <= set(hidden)
    monkeypatch.chdir("/")  # as a job's supervisor works elsewhere
    hidden = json.loads(sandbox.seclude(["true"], {"PWD": str(tmp_path)}, "host")[5])
    assert {str(tmp_path / ".env"), str(tmp_path / "deploy/.env")} <= set(hidden)
    assert str(tmp_path / "nowhere") not in hidden
