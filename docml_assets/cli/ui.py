"""`make ui`: the Dagster UI over the workspace of this folder and the Dagster home of the command line.

A process that a shell started with `&` ignores SIGINT and SIGTERM, and its children inherit that: `dagster dev` could then not be
stopped. The handlers are put back before it takes this process's place.
"""

import os
import signal
import sys
from collections.abc import Sequence

from docml_assets.cli.home import prepare_dagster_home

HOST = "127.0.0.1"


def main(arguments: Sequence[str]) -> None:
    """Replace this process by `dagster dev`; further arguments (`--port 3001`) go to it."""
    home = prepare_dagster_home()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    print(f"The Dagster UI on {HOST}, with the runs of {home}. Ctrl-C stops it.", flush=True)
    command = [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", HOST, *arguments]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main(sys.argv[1:])
