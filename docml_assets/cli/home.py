"""The Dagster home that the command line and `make ui` share, so that runs of one show in the other; and `make ui` itself."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import click

from docml_assets.errors import EXPLAINED_ERRORS, DocmlError
from docml_assets.experiment.folder import ExperimentFolder, experiment_folders, experiments_root
from docml_assets.terminal import say
from docml_contract.names import EXPERIMENT_NAME

if TYPE_CHECKING:
    import dagster as dg

    from docml_assets.deployment import Deployment

DEFAULT_HOME = ".dagster_home"
COPIES = "deployments"  # below the home: copies of deployment folders that docml serve reads
SETTINGS = "dagster.yaml"
LOCK = ".first_use.lock"  # held while a process opens the home; holds its number
PATIENCE_SECONDS = 20.0  # of many first uses at once, each waits for those before it
SERVED = "served"  # below the home: a note for each store that has used it, with its experiments
_PACKAGE = Path(__file__).resolve().parents[1]
# beside the package in a checkout; within it in a wheel
INSTANCE_SETTINGS = (_PACKAGE.parent / SETTINGS, _PACKAGE / SETTINGS)
# Dagster opens its databases by URL: these characters end or change the path in one.
ODD_CHARACTERS = re.compile(r"[%?#\x00-\x1f\x7f]")


class HomeError(DocmlError):
    """The Dagster home cannot be used."""


def home_path() -> Path:
    """DAGSTER_HOME (default ./.dagster_home), whether it is there or not."""
    return Path(os.environ.get("DAGSTER_HOME") or DEFAULT_HOME).expanduser().resolve()


def prepare_dagster_home() -> Path:
    """Set DAGSTER_HOME (default ./.dagster_home) as an absolute path and put `dagster.yaml` there if it has none.

    Dagster reads `dagster.yaml` from its home only. A file that is already there is the user's and stays as it is.
    The home notes whose it is (see `served_notes`). HomeError if the home cannot be one.
    """
    home = home_path()
    odd = ODD_CHARACTERS.search(str(home))
    if odd:
        raise HomeError(
            f"the Dagster home {str(home)!r} has {odd[0]!r} in its path; expected a path without %, ?, # and control characters: "
            "let DAGSTER_HOME name another folder"
        )
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (home / SETTINGS).exists():
            draft = home / f".{SETTINGS}.{os.getpid()}"
            shutil.copyfile(next(path for path in INSTANCE_SETTINGS if path.is_file()), draft)
            draft.replace(home / SETTINGS)
        _note_served(home)
    except OSError as error:
        raise _unusable(home, error) from error
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def _note_served(home: Path) -> None:
    """Note which store and experiments use the home now: its partition keys are those of all that do."""
    store = os.environ.get("DOCML_STORE") or "./storage"
    note = json.dumps(
        {
            "DOCML_STORE": store if "://" in store else os.path.realpath(Path(store).expanduser()),
            "DOCML_EXPERIMENTS": str(experiments_root(os.environ).resolve()),
        }
    )
    path = home / SERVED / f"{hashlib.sha256(note.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(note)
        draft.replace(path)


def served_notes(home: Path) -> list[Path]:
    """The notes of all that have used the home: the variables of a deployment in which they differ, as JSON."""
    return sorted((home / SERVED).glob("*.json"))


@contextmanager
def dagster_instance(home: Path) -> Iterator["dg.DagsterInstance"]:
    """The instance of a prepared home. HomeError, with the remedy, wherever its settings or databases cannot be used."""
    import dagster as dg

    from docml_assets.dagster_internals import keep_engines

    keep_engines()
    with explained_home(home):
        with _first_use(home):
            instance = _open(home)
            instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
            instance.all_instigator_state()
            instance.get_dynamic_partitions("experiment_run")
        with instance:
            yield instance


def _open(home: Path) -> "dg.DagsterInstance":
    """The instance of the home; HomeError for settings that Dagster cannot use, whatever it says of them."""
    import dagster as dg
    import sqlalchemy.exc
    from alembic.util import CommandError

    from docml_assets.history import CompactInstance, has_compressed_events

    try:
        instance = dg.DagsterInstance.get()
    except (sqlalchemy.exc.SQLAlchemyError, CommandError, OSError):
        raise
    except Exception as error:
        raise _wrong_settings(home, error) from error
    if not isinstance(instance, CompactInstance) and has_compressed_events(home):
        lines = f"instance_class: {{module: {CompactInstance.__module__}, class: {CompactInstance.__name__}}}"
        raise _wrong_settings(home, f"the events of its runs are compressed, and it lacks the line {lines}")
    return instance


def _wrong_settings(home: Path, cause: object) -> HomeError:
    first = " ".join(str(cause).split())[:300]
    return HomeError(
        f"{home / SETTINGS} is not what Dagster expects ({first}): fix it, or remove it, and docml writes its own"
    )


@contextmanager
def explained_home(home: Path) -> Iterator[None]:
    """Errors of a Dagster home as HomeError: its settings, its databases, its disk."""
    import dagster as dg
    import sqlalchemy.exc
    import yaml
    from alembic.util import CommandError

    from resources.jobs.local.container import lacks_space

    try:
        yield
    except (yaml.YAMLError, dg.DagsterInvalidConfigError) as error:
        raise _wrong_settings(home, error) from error
    except (sqlalchemy.exc.SQLAlchemyError, CommandError) as error:
        cause = str(getattr(error, "orig", None) or error).splitlines()[0]
        if "full" in cause or lacks_space(home):
            raise HomeError(f"the Dagster home {home} has no space left ({cause}): free some and try again") from error
        raise HomeError(
            f"the Dagster home {home} cannot be used ({cause}); expected databases that Dagster can read and write. If another process "
            f"holds them, end it; if they are damaged, move the folder away (mv {home} {home}.damaged): docml makes a new one, the store "
            "with its runs, models and reports stays as it is, and only the history in the UI begins anew"
        ) from error
    except OSError as error:
        if error.errno != errno.ENOSPC and not str(error.filename or "").startswith(str(home)):
            raise
        raise _unusable(home, error) from error


@contextmanager
def _first_use(home: Path) -> Iterator[None]:
    """One process at a time makes the databases of a home: two at once can leave it unusable for ever. One that stands still is named."""
    with (home / LOCK).open("a+b", buffering=0) as lock:
        patience = time.monotonic() + PATIENCE_SECONDS
        while not _locked(lock):
            if time.monotonic() > patience:
                patience = float("inf")
                lock.seek(0)
                other = lock.read(20).decode(errors="replace")
                say(
                    f"Waiting for process {other}, which is opening the Dagster home {home}. If it stands still (SIGSTOP), wake it "
                    f"(kill -CONT {other}) or end it (kill -KILL {other})",
                    fg="yellow",
                    err=True,
                )
            time.sleep(0.05)
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
        yield


def _locked(lock: FileIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unusable(home: Path, error: OSError) -> HomeError:
    if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
        what = "a folder" if isinstance(error, IsADirectoryError) else "no folder"
        return HomeError(
            f"the Dagster home {home} cannot be used: {error.filename} is {what}. Move it away, or let DAGSTER_HOME name another folder"
        )
    return HomeError(
        f"the Dagster home {home} cannot be used ({error.strerror or error}); expected a folder that this user can write to, with space "
        "left: fix its permissions, free space, or let DAGSTER_HOME name another folder"
    )


HOST = "127.0.0.1"
UI_LOCK = ".ui.lock"  # held while the UI runs; holds its address


@click.command()
@click.option("--port", "-p", type=click.IntRange(1, 65_535), default=3000, show_default=True)
def main(port: int) -> None:
    """Replace this process with `dagster dev`; a forked one says when it answers."""
    from docml_assets.deployment import Deployment

    address = f"http://{HOST}:{port}"
    try:
        home = prepare_dagster_home()
        hold(home, address)
        check_port(port)
        with dagster_instance(home) as instance:
            offer(instance, Deployment.current())
    except EXPLAINED_ERRORS as error:
        say(f"docml: {error}", fg="red", err=True)
        sys.exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    say(f"Starting the Dagster UI with the runs of {home} …")
    sys.stdout.flush()
    announce(address, os.getpid())
    os.execv(sys.executable, dagster_dev(port))


def dagster_dev(port: int) -> list[str]:
    """The command line of `dagster dev`."""
    command = ["dev", "-w", "workspace.yaml", "-h", HOST, "-p", str(port)]
    return [sys.executable, "-m", "docml_assets.webserver", *command]


def offer(instance: "dg.DagsterInstance", deployment: "Deployment") -> None:
    """Let the UI offer the claimed runs of the store, and of each experiment that has none its RUN_NUM."""
    from docml_assets.partitions import register
    from docml_assets.runs.claims import claimed_runs

    store = deployment.store
    for name in filter(EXPERIMENT_NAME.fullmatch, store.list_folders()):
        for number in claimed_runs(store, name):
            register(instance, name, number)
    for name, path in experiment_folders(deployment.experiments).items():
        with contextlib.suppress(DocmlError):  # a folder with mistakes is what docml validate and the sensor are for
            register(instance, name, ExperimentFolder.load(path).settings.run_num)


def check_port(port: int) -> None:
    """HomeError if another program listens there: `dagster dev` would fail after half a minute."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise HomeError(
                f"port {port} of {HOST} cannot be used ({error.strerror}); expected a free one: make ui PORT={port + 1}"
            ) from error


def announce(address: str, server: int) -> None:
    """Fork a process that says where the UI is once it answers there, and that ends with the process `server`."""
    if os.fork():
        return
    while os.getppid() == server:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/server_info", timeout=5):
            say(f"\nThe Dagster UI is ready: {address}  (Ctrl-C stops it)\n", fg="green", bold=True)
            break
        time.sleep(0.3)
    sys.stdout.flush()
    os._exit(0)


def hold(home: Path, address: str) -> None:
    """Take the home for one UI, as long as this process (or what takes its place) lives. HomeError if another one has it."""
    descriptor = os.open(home / UI_LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        other = os.read(descriptor, 200).decode(errors="replace") or "another address"
        os.close(descriptor)
        raise HomeError(
            f"a Dagster UI with the runs of {home} is running already: open {other}, or stop it first (two would launch runs twice)"
        ) from error
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, address.encode(), 0)
    os.set_inheritable(descriptor, True)


if __name__ == "__main__":
    main()
