"""`make ui`: the Dagster UI over the workspace of this folder and the Dagster home of the command line.

A process that a shell started with `&` ignores SIGINT and SIGTERM, and its children inherit that: `dagster dev` could then not be
stopped. The handlers are put back before it takes this process's place.
"""

import fcntl
import os
import signal
import sys
from pathlib import Path

import click

from docml_assets.cli.home import HomeError, dagster_instance, prepare_dagster_home
from docml_assets.cli.terminal import say
from docml_assets.errors import EXPLAINED_ERRORS

HOST = "127.0.0.1"
LOCK = ".ui.lock"  # held while the UI runs; holds its address


@click.command()
@click.option("--port", "-p", type=click.IntRange(1, 65_535), default=3000, show_default=True)
def main(port: int) -> None:
    """Replace this process by `dagster dev`."""
    try:
        home = prepare_dagster_home()
        with dagster_instance(home):
            pass
        hold(home, f"http://{HOST}:{port}")
    except EXPLAINED_ERRORS as error:
        say(f"docml: {error}", fg="red", err=True)
        sys.exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    say(f"The Dagster UI with the runs of {home}; it is ready when it says where it serves. Ctrl-C stops it.")
    os.execv(sys.executable, command(port))


def command(port: int) -> list[str]:
    """The command line of `dagster dev`."""
    return [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", HOST, "-p", str(port)]


def hold(home: Path, address: str) -> None:
    """Take the home for one UI, as long as this process (or what takes its place) lives. HomeError if another one has it."""
    descriptor = os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
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
